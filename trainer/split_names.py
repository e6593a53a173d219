"""What names of folders, files and fields say of splits. Pure functions.

The words are those of Hugging Face (`data/train-00000-of-00002.parquet`, `valid`,
`dev`), torchvision (`train/CLASS`), ImageNet (`ILSVRC2012_val`), COCO (`val2017`) and
webdataset (`imagenet-val-000000.tar`), in any case; whatever is no letter separates
words, and so does a capital behind a small letter.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping

TRAIN, VALIDATION, TEST, INDEX = "train", "validation", "test", "index"
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainval", "restval"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "query"), TEST),
    **dict.fromkeys(("index", "gallery"), INDEX),
}
# Words that say so in no longer name, such as `art_gallery`.
ALONE = ("query", "index", "gallery")
# Words around a split that say nothing else.
_NEUTRAL = {
    *("data", "dataset", "files", "full", "image", "images", "img", "imgs", "jpg"),
    *("of", "part", "photos", "pictures", "samples", "set", "split"),
}
_ROOTS = ("train", "val", "test", "dev", *ALONE)  # that all the words hold
_JOINED = re.compile(
    r"(train|training|val|validation|test|testing)(set|data|images|imgs|split)"
)


@dataclasses.dataclass(frozen=True)
class Sign:
    """A split that a name speaks of."""

    split: str
    is_whole: bool  # the name says nothing else


def parse_split(value: object) -> str:
    """Returns the split that a field names. Raises ValueError if it names none."""
    sign = find_sign(value) if isinstance(value, str) else None
    if sign is None or not sign.is_whole:
        raise ValueError(f"split {str(value)[:99]!r}: expected {', '.join(SPLITS)}")
    return sign.split


def find_sign(name: str) -> Sign | None:
    """Returns the split in a name without its ending, or None.

    None also if the name speaks of two splits.
    """
    low = name.lower()
    if not any(root in low for root in _ROOTS):  # most names, so quickly
        return None
    words = _words(name)
    used = [w for w in words if w in SPLITS and (len(words) == 1 or w not in ALONE)]
    found = {SPLITS[word] for word in used}
    if found == {TRAIN, VALIDATION} and re.search(r"train[^a-z]?val", low):
        found = {TRAIN}  # `train_val`: both, to train on
    if len(found) != 1:
        return None
    is_whole = not (set(words) - set(used) - _NEUTRAL)
    return Sign(found.pop(), is_whole)


def has_words(name: str) -> bool:
    """Whether a name speaks of splits in any way."""
    return any(word in SPLITS and word not in ALONE for word in _words(name))


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[a-z]+", apart.lower())
    joined = (_JOINED.fullmatch(word) for word in words)
    return [*itertools.chain.from_iterable(map(_parts, words, joined))]


def _parts(word: str, joined: re.Match | None) -> Iterator[str]:
    yield from joined.groups() if joined else (word,)
