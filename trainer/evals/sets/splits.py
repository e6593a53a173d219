"""What names of folders and files say of splits.

The words are those of Hugging Face (`data/train-00000-of-00002.parquet`, `valid`,
`dev`), torchvision (`train/CLASS`), ImageNet (`ILSVRC2012_val`), COCO (`val2017`) and
webdataset (`imagenet-val-000000.tar`), in any case; whatever is no letter separates
words, and so does a capital behind a small letter. Pure functions.
"""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

TRAIN, VALIDATION, TEST, INDEX = "train", "validation", "test", "index"
SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training", "trainval", "restval"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "query"), TEST),
    **dict.fromkeys(("index", "gallery"), INDEX),
}
# Words that say so in no longer name, such as `art_gallery`.
_ALONE = ("query", "index", "gallery")
# Folders that may as well be classes beside others: a vehicle, a room.
_THINGS = ("train", *_ALONE)
# Words around a split that say nothing else.
_NEUTRAL = {
    *("data", "dataset", "files", "full", "image", "images", "img", "imgs", "jpg"),
    *("of", "part", "photos", "pictures", "samples", "set", "split"),
}
_ROOTS = ("train", "val", "test", "dev", *_ALONE)  # that all the words hold
_JOINED = re.compile(
    r"(train|training|val|validation|test|testing)(set|data|images|imgs|split)"
)
_WITHIN = re.compile(r"train|val|test")  # a longer word: `minitrain`, `Testdaten`

Folder = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sign:
    split: str
    is_whole: bool  # the name says nothing else


def told(value: object) -> str:
    """The split that a field names. Raises ValueError when it is none."""
    sign = of_name(value) if isinstance(value, str) else None
    if sign is None or not sign.is_whole:
        raise ValueError(f"split {str(value)[:99]!r}: expected {', '.join(SPLITS)}")
    return sign.split


def of_name(name: str) -> Sign | None:
    """What a name without its ending says; None also where it names two splits."""
    low = name.lower()
    if not any(root in low for root in _ROOTS):  # most names, so quickly
        return None
    words = _words(name)
    used = [w for w in words if w in SPLITS and (len(words) == 1 or w not in _ALONE)]
    found = {SPLITS[word] for word in used}
    if found == {TRAIN, VALIDATION} and re.search(r"train[^a-z]?val", low):
        found = {TRAIN}  # `train_val`: both, to train on
    if len(found) != 1:
        return None
    is_whole = not (set(words) - set(used) - _NEUTRAL)
    return Sign(found.pop(), is_whole)


def of_path(parts: Sequence[str]) -> str | None:
    """The split of a file of samples, by its folders and its own name.

    Raises ValueError where they name several.
    """
    found = {sign.split for part in parts if (sign := of_name(part))}
    is_own = of_name(parts[-1]) is not None
    if len(found) > 1 or (has_words(parts[-1]) and not is_own):
        raise ValueError(f"{'/'.join(parts)[-200:]}: expected one split, not several")
    return found.pop() if found else None


def has_words(name: str) -> bool:
    """Whether a name speaks of splits, in whatever way."""
    return any(word in SPLITS and word not in _ALONE for word in _words(name))


def of_folders(folders: Collection[Folder]) -> Mapping[Folder, str]:
    """Which of the folders that images lie in are splits, and of their parents.

    Folders side by side are splits when all of them have such names, or several of
    them, or one that nothing can be called but a split. `train` beside `bus`, both
    with images in them, is a class.
    """
    children: dict[Folder, set[str]] = defaultdict(set)
    for folder in folders:
        for depth in range(len(folder)):
            children[folder[:depth]].add(folder[depth])
    flat = set(folders)
    found: dict[Folder, str] = {}
    queue: list[Folder] = [()]
    while queue:
        parent = queue.pop()
        flat_names = {name for name in children[parent] if (*parent, name) in flat}
        splits = _level(children[parent], flat_names)
        for name in children[parent]:
            if name in splits:
                found[*parent, name] = splits[name]
            else:
                queue.append((*parent, name))
    return found


def unclear(paths: Iterable[Folder]) -> list[str]:
    """Names side by side that all look like splits, and are none that is known."""
    children: dict[Folder, set[str]] = defaultdict(set)
    for path in paths:
        for depth, name in enumerate(path):
            children[path[:depth]].add(name)
    for names in children.values():
        found = [_WITHIN.search(name.lower()) for name in names]
        roots = {root[0] for root in found if root}
        if all(found) and "train" in roots and len(roots) > 1:
            return sorted(names)
    return []


def class_like(folders: Iterable[Folder], splits: Mapping[Folder, str]) -> set[str]:
    """Names of splits that were taken for classes."""
    parts = {
        folder[depth]
        for folder in folders
        if within(folder, splits) is None
        for depth in range(len(folder))
    }
    return {name for name in parts if (sign := of_name(name)) and sign.is_whole}


def within(folder: Folder, splits: Mapping[Folder, str]) -> str | None:
    """The split that a folder lies in."""
    above = (folder[:depth] for depth in range(1, len(folder) + 1))
    return next((splits[one] for one in above if one in splits), None)


def _level(names: Collection[str], flat: Collection[str]) -> Mapping[str, str]:
    """Of folders side by side, those that are splits; `flat` ones hold images."""
    signs = {name: sign for name in names if (sign := of_name(name))}
    whole = {name for name, sign in signs.items() if sign.is_whole}
    n_splits = len({sign.split for sign in signs.values()})
    n_whole = len({signs[name].split for name in whole})
    is_deep = any(name not in flat for name in signs)
    if len(signs) == len(names):
        is_level = n_splits > 1 or bool(whole) or is_deep or len(names) == 1
    elif n_whole == 1 and not is_deep:
        others_are_flat = any(name in flat for name in names if name not in signs)
        is_thing = all(name.lower() in _THINGS for name in whole)
        is_level = not (is_thing and others_are_flat)
    else:
        is_level = n_whole > 1 or is_deep
    return {name: sign.split for name, sign in signs.items()} if is_level else {}


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[a-z]+", apart.lower())
    joined = (_JOINED.fullmatch(word) for word in words)
    return [*itertools.chain.from_iterable(map(_parts, words, joined))]


def _parts(word: str, joined: re.Match | None) -> Iterator[str]:
    yield from joined.groups() if joined else (word,)
