"""Evaluation sets in four forms: folders, tars, Parquet files, TensorFlow Datasets.

A path is a folder, a file or a glob. Every form gives the same samples. Splits are
named by folders, by files of samples, by a field `split`, or by TensorFlow Datasets;
`trainer.split_names` says how names are understood.
"""

import collections
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from trainer.evals.sets import accounts, label_names, layouts, listing, splits, tfds
from trainer.evals.sets.accounts import Account
from trainer.evals.sets.folders import Folders
from trainer.evals.sets.label_names import FILES, Names
from trainer.evals.sets.layouts import USUAL, Layout, ScoredSplit
from trainer.evals.sets.samples import Place, Sample, SampleError, deal_split
from trainer.evals.sets.tables import Tables
from trainer.evals.sets.tars import Tars
from trainer.split_names import INDEX, TEST, find_sign, has_words

# Files that may say which images are of which split.
_LISTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".mat", ".xml")
_SPLIT_IN_README = re.compile(r"^[-\s]*split:\s*\S", re.M)
# An own folder of this name may be called so for what it is used for.
_PURPOSES = ("eval", "evaluation", "evals")


class Reader(Protocol):
    """A reader of one form of sets."""

    def read(self, account: Account) -> Iterator[Sample]:
        """Yields samples as the set describes them; counts what is none."""
        ...

    def places(self) -> Iterator[Place]:
        """Yields where samples are, without reading the images."""
        ...


@dataclasses.dataclass(frozen=True)
class Around:
    """What else there is at the place of a set."""

    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by reason
    split: str | None = None  # that the name of the set's own folder says
    # Names that speak of splits and are not understood, of files and of folders.
    unclear: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """An evaluation set that exists. Nothing of it has been read yet."""

    place: str
    reader: Reader
    classes: tuple[str, ...]  # names of labels or masks; () if nobody says
    are_classes_told: bool = False  # by a setting
    around: Around = Around()
    wanted: ScoredSplit = USUAL
    account: Account = dataclasses.field(default_factory=Account)

    @functools.cached_property
    def layout(self) -> Layout:
        """How the set names its splits. Raises SampleError if it contradicts itself."""
        places = self.reader.places()
        return layouts.survey(self.place, places, self.around.split, self.wanted)

    def samples(self) -> Iterator[Sample]:
        """Yields all samples, with their role as the split."""
        self.account.begin()
        for reason, n in self.around.unread.items():
            self.account.count_unread(reason, n)
        for note in self.around.notes:
            self.account.warn(note)
        for one in self.reader.read(self.account):
            yield dataclasses.replace(one, split=self.layout.role(one.place))

    def check_split(self) -> None:
        """Raises SampleError unless training images are known, or can be dealt."""
        self.layout.check(self.place)
        is_named = self.layout.splits != {None}
        if not is_named and self.around.unclear:
            raise SampleError(
                f"{self.place}: {self.around.unclear[0]} speaks of a split, and is not"
                " understood: expected folders or files `train` and `test`, or a field"
                " `split`"
            )
        self.account.split = accounts.NAMED if is_named else accounts.HASHED

    def of_split(self, split: str, kind: str = "") -> Iterator[Sample]:
        """Yields samples of a split with this kind of truth; see `Sample.has`.

        If nothing names a split, samples are dealt to splits by a hash of their keys.
        """
        self.check_split()
        return self._select((split,), kind, is_dealt=True)

    def not_of_training(self, kind: str = "") -> Iterator[Sample]:
        """Yields all samples but those for training, for tasks that train nothing."""
        self.layout.check(self.place)
        return self._select((TEST, accounts.NONE), kind)

    def queries_and_index(self, kind: str = "") -> Iterator[Sample]:
        """Yields queries and the images that they search."""
        self.layout.check(self.place, is_by_domain=True)
        return self._select((TEST, INDEX, accounts.NONE), kind)

    def summary(self) -> dict[str, object]:
        """Returns, for the results, what was used and what was not."""
        is_named = self.account.split == accounts.NAMED
        scored = {"scored_split": self.layout.scored} if is_named else {}
        return self.account.summary() | scored

    def no_samples_error(self, message: str) -> SampleError:
        """Returns an error that names the splits that exist and what was left out."""
        named = ", ".join(sorted(split for split in self.layout.splits if split))
        there = f"splits are {named}" if named else ""
        said = (message, there, self.account.summarize_left_out())
        return SampleError(f"{self.place}: {'; '.join(filter(None, said))}")

    def _select(
        self, asked: tuple[str, ...], kind: str, *, is_dealt: bool = False
    ) -> Iterator[Sample]:
        account = self.account
        account.mark_asked(*asked)
        if not is_dealt:
            is_named = self.layout.splits != {None}
            account.split = accounts.NAMED if is_named else accounts.NONE
        for one in self.samples():
            split = one.split or (deal_split(one.key) if is_dealt else accounts.NONE)
            account.count_read(split)
            if split in asked and kind and not one.has(kind):
                account.count_left_out(f"without {kind}")
            elif split in asked:
                account.count_used()
                if kind == "captions":
                    account.n_empty_captions += one.n_empty_captions
                yield one


def find_source(place: str, classes: str = "", wanted: ScoredSplit = USUAL) -> Source:
    """Finds the set at a place, with the class names of the JSON file `classes`.

    Without that file, the names are those that the set gives. Raises ValueError if
    there is nothing.
    """
    names = label_names.read_told(classes)
    if place.startswith(tfds.PREFIX):
        prepared = tfds.open_set(place)
        names = names or prepared.names()
        return _source(place, prepared.reader(names), names, Around(), wanted)
    found = listing.list_files(place)
    names = names or label_names.find_in(_folders_of_names(found.root))
    if paths := found.ending(".tar", ".tar.gz", ".tgz"):
        around = _around(found, paths, _endings(found, paths))
        return _source(place, Tars(found.root, paths, names), names, around, wanted)
    if paths := found.ending(".parquet"):
        tables = Tables(found.root, paths, names)
        around = _around(found, paths, _endings(found, paths))
        return _source(place, tables, tables.all_names(), around, wanted)
    if not any(listing.is_image(path.name) for path in found.files):
        raise ValueError(
            f"{place}: no file, expected tars, Parquet files or a folder of images"
            + _instead(found)
        )
    folders = Folders(found.root, found.files, names, found.is_glob)
    around = _around(found, folders.inner, folders.others)
    notes = tuple(
        f"folder {name}: taken for a class, as the folders beside it are"
        for name in sorted(folders.class_like())
    )
    around = dataclasses.replace(around, notes=notes)
    return _source(place, folders, names, around, wanted)


def _source(
    place: str, reader: Reader, names: Names, around: Around, wanted: ScoredSplit
) -> Source:
    return Source(place, reader, names.listed, names.is_told, around, wanted)


def _around(
    found: listing.Listing, used: Sequence[pathlib.Path], others: Mapping[str, int]
) -> Around:
    sign = find_sign(found.root.absolute().name)
    is_purpose = found.root.absolute().name.lower() in _PURPOSES
    split = sign.split if sign and sign.is_whole and not is_purpose else None
    beside = sorted(set(found.files) - set(used))
    lists = tuple(str(path.relative_to(found.root)) for path in beside if _lists(path))
    unread = collections.Counter(found.unread) + collections.Counter(others)
    unclear = splits.find_unclear(_names(path, found.root) for path in used)
    return Around(unread, split, (*unclear, *lists))


def _names(path: pathlib.Path, root: pathlib.Path) -> splits.Folder:
    """The folders of a file, and its own name unless it is an image."""
    parts = listing.parts(path, root)
    return parts[:-1] if listing.is_image(path.name) else parts


def _endings(
    found: listing.Listing, used: Sequence[pathlib.Path]
) -> collections.Counter[str]:
    """Other files, without what img2dataset and webdataset write of their tars."""
    kept = set(used)
    stems = {path.with_suffix("") for path in used}
    return collections.Counter(
        listing.describe_ending(path.name)
        for path in found.files
        if path not in kept
        and path.name not in FILES
        and path.with_name(path.stem.removesuffix("_stats")) not in stems
    )


def _lists(path: pathlib.Path) -> bool:
    """Whether the name or the text of a file that is not read mentions splits."""
    if path.name == "README.md":
        return bool(_SPLIT_IN_README.search(path.read_text(errors="replace")))
    is_text = path.suffix.lower() in _LISTS
    return path.name == "setid.mat" or (is_text and has_words(path.stem))


def _folders_of_names(root: pathlib.Path) -> list[pathlib.Path]:
    """The set's own folder, and the one above where it is a part of the set."""
    sign = find_sign(root.name)
    is_part = root.name == "data" or (sign is not None and sign.is_whole)
    return [root, root.parent] if is_part else [root]


def _instead(found: listing.Listing) -> str:
    endings = sorted({listing.describe_ending(path.name) for path in found.files})
    return f"; there are files {', '.join(endings[:5])}" if endings else ""
