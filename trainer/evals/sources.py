"""Evaluation sets in four forms: folders, tars, Parquet files, TensorFlow Datasets.

A path is a folder, a file or a glob. Every form gives the same samples; where a set has
splits they are named by a folder (`train`, `val`, `test`, `index` ...), by a field
`split`, or by TensorFlow Datasets.
"""

import dataclasses
import glob
import itertools
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.evals import tfds
from trainer.evals.samples import (
    INDEX,
    SPLITS,
    Part,
    Sample,
    SampleError,
    about,
    is_of,
    label_name,
    make,
)

CLASSES = "classes.json"
_IMAGES = ("jpg", "jpeg", "png", "webp")
# What files are called after their key.
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(_IMAGES, "image"),
    **dict.fromkeys(("seg.png", "mask.png", "mask.npy"), "mask"),
    **dict.fromkeys(("depth.png", "depth.npy"), "depth"),
    **dict.fromkeys(("normals.png", "normals.npy"), "normals"),
}
# Folders beside `images`, with files of the same names.
_TRUTHS = {
    "masks": "mask",
    "annotations": "mask",
    "depth": "depth",
    "normals": "normals",
}
_COLUMNS = {
    "image": ("image", *_IMAGES, "img"),
    "mask": ("mask", "seg.png", "seg", "segmentation_mask"),
    "depth": ("depth",),
    "normals": ("normals",),
}
_N_ROWS = 64  # of a table, read at a time


@dataclasses.dataclass(frozen=True)
class Source:
    """An evaluation set that is there; nothing of it is read yet."""

    place: str
    classes: tuple[str, ...]  # names of labels or masks; () if nobody says
    samples: Callable[[], Iterator[Sample]]

    def of(self, split: str) -> Iterator[Sample]:
        """Samples without a split are dealt out; see `is_of`."""
        return (sample for sample in self.samples() if is_of(sample, split))

    def not_of_training(self) -> Iterator[Sample]:
        """For tasks that train nothing: all that is not told to be for it."""
        return (one for one in self.samples() if one.split in (None, SPLITS["test"]))

    def searched(self) -> Iterator[Sample]:
        """Queries and index."""
        searched = (None, SPLITS["query"], INDEX)
        return (one for one in self.samples() if one.split in searched)


def find(place: str, classes: str = "") -> Source:
    """The set at a place, with the names in the JSON file `classes`.

    Without that file it is `classes.json` at the data. Raises ValueError when nothing
    is there.
    """
    if place.startswith(tfds.PREFIX):
        return _of_tfds(tfds.open_set(place), _names(classes))
    root = pathlib.Path(place)
    names = _names(classes) or _names_at(root)
    tars, tables = _listed(place, ".tar"), _listed(place, ".parquet")
    images = sorted(path for path in map(pathlib.Path, _glob(place)) if _is_image(path))
    read: list[tuple[Callable[..., Iterator[Sample]], pathlib.Path]]
    if tars:
        read = [(_read_tar, path) for path in tars]
    elif tables:
        read = [(_read_table, path) for path in tables]
    elif root.is_dir() and any(_is_image(path) for path in root.rglob("*")):
        read = [(_read_folder, root)]
    elif images:
        root = pathlib.Path(os.path.commonpath([path.parent for path in images]))
        read = [(_read_image, path) for path in images]
    else:
        raise ValueError(
            f"{place}: no file, expected tars, Parquet files or a folder of images"
        )

    def samples() -> Iterator[Sample]:
        for reader, path in read:
            yield from reader(path, root, names)

    return Source(place, names, samples)


def _of_tfds(found: tfds.Prepared, names: tuple[str, ...]) -> Source:
    names = names or found.label_names

    def samples() -> Iterator[Sample]:
        for key, row in found.rows(SPLITS):
            yield from _of_row(key, f"{found.place}: {key}", row, names)

    return Source(found.place, names, samples)


def _listed(place: str, suffix: str) -> list[pathlib.Path]:
    """Files of a folder and its folders, or of a glob, in order."""
    root = pathlib.Path(place)
    found = (
        root.rglob(f"*{suffix}") if root.is_dir() else map(pathlib.Path, _glob(place))
    )
    return sorted(path for path in found if path.name.endswith(suffix))


def _glob(place: str) -> list[str]:
    return glob.glob(place, recursive=True)


def _names(path: str) -> tuple[str, ...]:
    """A JSON list of strings; none without a path."""
    if not path:
        return ()
    try:
        names = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected a JSON list of names") from error
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{path}: expected a JSON list of names")
    return tuple(names)


def _names_at(root: pathlib.Path) -> tuple[str, ...]:
    path = (root if root.is_dir() else root.parent) / CLASSES
    return _names(str(path)) if path.exists() else ()


def _split(path: pathlib.Path, root: pathlib.Path) -> str | None:
    """The first folder below the root that names one."""
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return next((folder for folder in folders if folder in SPLITS), None)


def _read_tar(
    path: pathlib.Path, root: pathlib.Path, names: Sequence[str]
) -> Iterator[Sample]:
    """img2dataset and webdataset: KEY.jpg, KEY.txt, KEY.json, KEY.seg.png ..."""
    fallback = {"split": _split(path, root)}
    try:
        with tarfile.open(path) as tar:
            files = (_read_member(tar, member) for member in tar if member.isfile())
            for key, group in itertools.groupby(files, key=lambda file: file[0]):
                contents = {extension: data for _, extension, data in group}
                yield from _of_files(key, f"{path}: {key}", contents, fallback, names)
    except tarfile.TarError as error:
        raise SampleError(f"{path}: {error}") from error


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple:
    """(key, extension, bytes); a key ends at the first dot of the file name."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    file = tar.extractfile(member)
    data = file.read() if file else b""  # links have no content of their own
    return f"{folder}/{stem}".strip("/"), extension.lower(), data


def _of_files(
    key: str,
    name: str,
    contents: Mapping[str, bytes],
    fallback: Mapping[str, Any],
    names: Sequence[str],
) -> Iterator[Sample]:
    """A sample from files by extension; `fallback` is what their place tells."""
    with about(name):
        text = contents.get("txt", b"").decode()
        fields = json.loads(contents.get("json", b"{}"))
    parts = {_KINDS[ext]: data for ext, data in contents.items() if ext in _KINDS}
    fields = {**fallback, "caption": text, **fields}
    fields["label"] = label_name(fields.get("label"), names, name)
    yield from make(key, name, parts, fields)


def _read_folder(
    root: pathlib.Path, _: pathlib.Path, names: Sequence[str]
) -> Iterator[Sample]:
    """Files of a key, in a folder of their class, or `images` beside `masks`.

    Folders are [DOMAIN/][SPLIT/]CLASS, or [SPLIT/]images with or without more below.
    """
    files = sorted(
        (path for path in root.rglob("*") if path.is_file()),
        key=lambda path: (path.parent, path.name.partition(".")),
    )
    folders = _image_folders(files, root)
    kept = (path for path in files if path.parent in folders and path.name != CLASSES)
    for stem, group in itertools.groupby(kept, key=_stem):
        contents = {p.name.partition(".")[2].lower(): p.read_bytes() for p in group}
        place = stem.relative_to(root)
        fields: dict[str, Any] = {"split": _split(stem, root)}
        if "images" in place.parts:
            contents |= _truths(root, place)
        else:
            above = [folder for folder in place.parts[:-1] if folder not in SPLITS]
            fields |= dict(zip(("label", "domain"), reversed(above), strict=False))
        yield from _of_files(str(place), str(stem), contents, fields, names)


def _read_image(
    path: pathlib.Path, root: pathlib.Path, names: Sequence[str]
) -> Iterator[Sample]:
    """A file by itself, of which nothing else is known."""
    contents = {path.suffix[1:].lower(): path.read_bytes()}
    key = str(path.relative_to(root))
    yield from _of_files(key, str(path), contents, {}, names)


def _stem(path: pathlib.Path) -> pathlib.Path:
    return path.parent / path.name.partition(".")[0]


def _image_folders(
    files: Sequence[pathlib.Path], root: pathlib.Path
) -> set[pathlib.Path]:
    """Folders with samples; licences and lists lie beside them, masks elsewhere."""
    found = {path.parent for path in files if _is_image(path)}
    paired = {path for path in found if "images" in path.relative_to(root).parts}
    return paired or found


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix[1:].lower() in _IMAGES and path.is_file()


def _truths(root: pathlib.Path, place: pathlib.Path) -> dict[str, bytes]:
    """Files of the same name in the folders beside `images`, by extension."""
    found = {}
    for folder, kind in _TRUTHS.items():
        parts = [folder if part == "images" else part for part in place.parts]
        for suffix in ("png", "npy"):
            path = root.joinpath(*parts).with_name(f"{parts[-1]}.{suffix}")
            if path.exists():
                found[f"{kind}.{suffix}"] = path.read_bytes()
    return found


def _read_table(
    path: pathlib.Path, root: pathlib.Path, names: Sequence[str]
) -> Iterator[Sample]:
    """A row a sample; images are bytes, or Hugging Face's structs that hold them."""
    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=_N_ROWS)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows):
            key = str(row.get("__key__") or row.get("key") or number)
            row.setdefault("split", _split(path, root))
            yield from _of_row(key, f"{path}: {key}", row, names)
    except pa.ArrowException as error:
        raise SampleError(f"{path}: {error}") from error


def _of_row(
    key: str, name: str, row: Mapping[str, Any], names: Sequence[str]
) -> Iterator[Sample]:
    parts = {}
    for kind, columns in _COLUMNS.items():
        found = next((row[c] for c in columns if row.get(c) is not None), None)
        if found is not None:
            parts[kind] = _part(found)
    label = row.get("label_name", row.get("label"))
    fields = {**row, "label": label_name(label, names, name)}
    yield from make(key, name, parts, fields)


def _part(value: Any) -> Part:
    return value["bytes"] if isinstance(value, Mapping) else value
