"""The files of an evaluation set, and which of them belong to one sample."""

import collections
import glob
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from trainer.evals.sets.accounts import Account

T = TypeVar("T")

# In order of preference, where one key has several.
IMAGES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif")
# What files are called after their key.
KINDS: Mapping[str, str] = {
    **dict.fromkeys(IMAGES, "image"),
    **dict.fromkeys(("seg.png", "mask.png", "mask.npy"), "mask"),
    **dict.fromkeys(("depth.png", "depth.npy"), "depth"),
    **dict.fromkeys(("normals.png", "normals.npy"), "normals"),
}
TRUTHS = ("seg", "mask", "depth", "normals")
_ENDS_OF_TRUTHS = tuple(f".{word}" for word in TRUTHS)
UNREAD_IMAGES = ("avif", "heic", "heif", "jp2", "jxl", "pgm", "ppm", "svg", "tga")


class Listing(NamedTuple):
    """The files at a place."""

    root: pathlib.Path  # what names of splits and classes are below
    files: list[pathlib.Path]
    unread: Mapping[str, int]  # what is no file, by reason
    is_glob: bool = False

    def ending(self, *endings: str) -> list[pathlib.Path]:
        """Returns the files with one of the endings, in upper or lower case."""
        return [path for path in self.files if path.name.lower().endswith(endings)]


def list_files(place: str) -> Listing:
    """Lists the files of a folder, of a file, or of a glob, in order."""
    path = pathlib.Path(place)
    unread: collections.Counter[str] = collections.Counter()
    if place and path.is_dir():
        real = os.path.realpath(path)
        return Listing(path, sorted(_walk(place, frozenset([real]), unread)), unread)
    if place and path.exists():
        return Listing(path.parent, [path], unread)
    found = sorted(map(pathlib.Path, glob.glob(place, recursive=True)))
    files = [path for path in found if path.is_file()]
    return Listing(_literal(path), files, unread, is_glob=True)


def group_by_key(
    files: Iterable[tuple[str, T]], account: Account
) -> Iterator[tuple[str, dict[str, T]]]:
    """Yields (key, its files by the rest of their names), from (name, file) in order.

    Names are grouped up to their first dot, as in webdataset. In a group, every image
    has its own key, which may have dots; other files go to the longest key that they
    begin with, or to the only one.
    """
    for start, group in itertools.groupby(files, key=lambda file: _start(file[0])):
        yield from _of_group(start, list(group), account)


def is_image(name: str) -> bool:
    """Whether the ending is that of an image; `KEY.seg.png` is none."""
    stem, dot, ending = name.lower().rpartition(".")
    return bool(dot) and ending in IMAGES and not stem.endswith(_ENDS_OF_TRUTHS)


def describe_ending(name: str) -> str:
    """Returns `ending .txt`, for messages."""
    suffix = pathlib.PurePath(name).suffix.lower()
    return f"ending {suffix[:20]}" if suffix else "without an ending"


def parts(path: pathlib.Path, root: pathlib.Path) -> tuple[str, ...]:
    """Returns the folders of a file below the root, and its name without the ending."""
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return (*folders, path.stem)


def _walk(
    folder: str, above: frozenset[str], unread: collections.Counter[str]
) -> Iterator[pathlib.Path]:
    """Links are followed, unless they lead to a folder that contains them."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            unread["hidden"] += 1
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above:
                unread["link to a folder above it"] += 1
            else:
                yield from _walk(entry.path, above | {real}, unread)
        elif entry.is_file():
            yield pathlib.Path(entry.path)
        else:
            unread["broken link" if entry.is_symlink() else "no file"] += 1


def _literal(pattern: pathlib.Path) -> pathlib.Path:
    """The folder that contains all matches of a pattern."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    return pathlib.Path(*parts)


def _start(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _of_group(
    start: str, group: Sequence[tuple[str, T]], account: Account
) -> Iterator[tuple[str, dict[str, T]]]:
    if len(group) == 1 and is_image(group[0][0]):  # most often
        key, _, rest = group[0][0].rpartition(".")
        yield key, {rest.lower(): group[0][1]}
        return
    images = [name.rpartition(".")[0] for name, _ in group if is_image(name)]
    keys = sorted(set(images), key=len, reverse=True)  # the longest first
    found: dict[str, dict[str, T]] = {key: {} for key in dict.fromkeys(images)}
    for name, file in group:
        owner = next((key for key in keys if name.startswith(f"{key}.")), start)
        rest = name[len(owner) + 1 :].lower()
        files = found.setdefault(keys[0] if len(keys) == 1 else owner, {})
        if rest in files:
            account.count_unread("name that stands twice")
        files[rest] = file
    yield from found.items()
