"""Parquet files, one sample per row; columns by name or by Hugging Face's metadata."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.evals.sets import label_names, listing, splits
from trainer.evals.sets.accounts import Account
from trainer.evals.sets.label_names import Names
from trainer.evals.sets.samples import (
    Part,
    Place,
    Sample,
    SampleError,
    Stored,
    errors_about,
    make_sample,
)
from trainer.split_names import parse_split

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", *listing.IMAGES, "img"),
    "mask": ("mask", "seg.png", "seg", "segmentation_mask"),
    "depth": ("depth", "depth.png", "depth.npy"),
    "normals": ("normals", "normals.png", "normals.npy"),
}
_LABELS = ("label_name", "label", "cls")
_KEYS = ("__key__", "key")
_N_ROWS = 64  # of a table, read at a time


@dataclasses.dataclass(frozen=True)
class Tables:
    """The Parquet files of a set."""

    root: pathlib.Path
    paths: list[pathlib.Path]
    names: Names  # that the set's files or a setting give

    def read(self, account: Account) -> Iterator[Sample]:
        """Yields samples, and counts rows without an image."""
        for path in self.paths:
            with _about_table(path):
                table = _Table(path, self.root)
                yield from table.rows(self.names, account)

    def places(self) -> Iterator[Place]:
        """Yields where samples are, without the images."""
        for path in self.paths:
            with _about_table(path):
                yield from _Table(path, self.root).places()

    def all_names(self) -> Names:
        """Returns the names of a setting, else of a table, else of the set."""
        if self.names.is_told:
            return self.names
        for path in self.paths:
            with _about_table(path):
                if found := _Table(path, self.root).own_names():
                    return found
        return self.names


@dataclasses.dataclass(frozen=True)
class _Table:
    path: pathlib.Path
    root: pathlib.Path

    def rows(self, names: Names, account: Account) -> Iterator[Sample]:
        columns = self._columns()
        label = self._label_column()
        names = names if names.is_told else self.own_names() or names
        for number, row in self._read(None):
            place, name = self._place(number, row), f"{self.path}: row {number}"
            with errors_about(name):
                parts = {
                    kind: part
                    for kind, found in columns.items()
                    if (part := self._part(found, row)) is not None
                }
            fields = row | ({"label": row[label]} if label else {})
            sample = make_sample(place, name, parts, fields, names)
            if sample:
                yield sample
            else:
                account.count_unread("no image")

    def places(self) -> Iterator[Place]:
        """Yields those of all rows; of the first row alone if rows name no places."""
        columns = [
            name
            for name in self._names
            if name.lower() in ("split", "domain") or name in _KEYS
        ]
        if not columns:
            yield self._place(0, {})
        else:
            for number, row in self._read(columns):
                yield self._place(number, row)

    def own_names(self) -> Names:
        label = self._label_column()
        if label is None:
            return Names()
        return label_names.parse_features(self._features, label, str(self.path))

    @functools.cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    @property
    def _names(self) -> list[str]:
        return self._file.schema_arrow.names

    @functools.cached_property
    def _features(self) -> Mapping[str, Any]:
        """What Hugging Face's metadata say of the columns."""
        metadata = self._file.schema_arrow.metadata or {}
        recorded = json.loads(metadata.get(b"huggingface", b"{}"))
        info = recorded.get("info") if isinstance(recorded, Mapping) else None
        found = info.get("features") if isinstance(info, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    @functools.cached_property
    def split(self) -> str | None:
        return splits.split_of_path(listing.parts(self.path, self.root))

    def _read(self, columns: list[str] | None) -> Iterator[tuple[int, dict]]:
        batches = self._file.iter_batches(batch_size=_N_ROWS, columns=columns)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        return enumerate(rows)

    def _place(self, number: int, row: Mapping[str, Any]) -> Place:
        """Its split is that of the row, else that of the file."""
        low = {name.lower(): value for name, value in row.items()}
        key = str(next((row[k] for k in _KEYS if row.get(k) is not None), number))
        with errors_about(f"{self.path}: row {number}"):
            split = low.get("split")
            split = parse_split(split) if split not in (None, "") else self.split
        domain = low.get("domain")
        return Place(key, split, None if domain is None else str(domain))

    def _columns(self) -> dict[str, list[str]]:
        """Kinds of parts to the columns that may hold them.

        Raises SampleError when there is none of images.
        """
        found = {
            kind: [name for name in names if name in self._names]
            for kind, names in COLUMNS.items()
        }
        found["image"] = found["image"] or self._of_type("Image")
        if not found["image"]:
            shown = ", ".join(self._names)[:200]
            expected = ", ".join(COLUMNS["image"])
            raise SampleError(
                f"{self.path}: columns {shown}: expected one of images: {expected}"
            )
        return found

    def _label_column(self) -> str | None:
        """By its name, or the only one of classes."""
        low = {name.lower(): name for name in self._names}
        named = [low[name] for name in _LABELS if name in low]
        return next(iter(named or self._of_type("ClassLabel")), None)

    def _of_type(self, kind: str) -> list[str]:
        found = [
            name
            for name in self._names
            if isinstance(feature := self._features.get(name), Mapping)
            and feature.get("_type") == kind
        ]
        return found if len(found) == 1 else []

    def _part(self, columns: Sequence[str], row: Mapping[str, Any]) -> Part | None:
        """Bytes, a struct that holds them, or the path of a file next to the table."""
        column = next((name for name in columns if row[name] is not None), None)
        if column is None:
            return None
        value = row[column]
        path = value if isinstance(value, str) else None
        if isinstance(value, Mapping):
            path, value = value.get("path"), value.get("bytes")
        if isinstance(value, bytes):
            return value
        if isinstance(path, str) and (file := self.path.parent / path).is_file():
            return Stored(file)
        if value is None or path is not None:
            raise ValueError(f"column {column}: no bytes, and no file {path}")
        raise ValueError(f"column {column}: {str(value)[:60]}: expected bytes")


@contextlib.contextmanager
def _about_table(path: pathlib.Path) -> Iterator[None]:
    try:
        with errors_about(str(path)):
            yield
    except pa.ArrowException as error:
        raise SampleError(f"{path}: {error}") from error
