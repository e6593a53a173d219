"""Parquet tables of rows: one table per unit of work.

A unit of work writes one small table. A table is complete or absent, so a listing of a
folder shows which units still have to be processed.
"""

import dataclasses
import functools
import io
import typing
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import files, recent_tables
from pipeline.storage.object_urls import is_object_url

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = typing.TypeVar("Row", bound="DataclassInstance")

_ARROW_TYPES = {
    bytes: pa.binary(),
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
}


@functools.cache
def schema_of(row_type: type) -> pa.Schema:
    """The Arrow schema of a dataclass of the contract."""
    hints = typing.get_type_hints(row_type)
    return pa.schema([(name, _ARROW_TYPES[hint]) for name, hint in hints.items()])


def to_table(rows: Iterable[typing.Any], row_type: type) -> pa.Table:
    """A table of dataclass instances of one type."""
    names = [field.name for field in dataclasses.fields(row_type)]
    rows = list(rows)
    columns = [[getattr(row, name) for row in rows] for name in names]
    return pa.table(dict(zip(names, columns, strict=True)), schema=schema_of(row_type))


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """The rows of a table as dataclass instances."""
    columns = [
        _values(table.column(field.name)) for field in dataclasses.fields(row_type)
    ]
    return [row_type(*values) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list:
    values = column.to_pylist()
    return [tuple(v) for v in values] if pa.types.is_list(column.type) else values


def to_vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """The rows of a matrix, [n, d], as a column of n vectors."""
    numbers = pa.array(vectors.ravel())
    return pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1])


def from_vector_column(column: pa.FixedSizeListArray) -> np.ndarray:
    """A column of n vectors of d numbers as a matrix, [n, d]."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def open_table(path: str) -> typing.BinaryIO:
    """A Parquet file of a run folder; a small one of a store comes in one request.

    Raises:
      FileNotFoundError: if there is no such table.
    """
    if not is_object_url(path):
        return files.open_for_reading(path)
    data = recent_tables.find(path)
    if data is None:
        file = files.open_for_reading(path)  # its end came first
        n_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        if n_bytes > recent_tables.MAX_BYTES:
            return file
        data = file.read()
        recent_tables.keep(path, data)
    return io.BytesIO(data)


def read_vector_dim(path: str, column: str = "embedding") -> int:
    """How many numbers a vector of a table has, from its schema alone."""
    with open_table(path) as file:
        return pq.read_schema(file).field(column).type.list_size


@dataclasses.dataclass(frozen=True)
class UnitTables:
    """One Parquet table per unit of work, in one folder named by a fingerprint."""

    folder: str

    def path(self, unit_name: str) -> str:
        """Where the table of a unit lies."""
        return files.join(self.folder, f"{unit_name}.parquet")

    def unit_names(self) -> frozenset[str]:
        """Units whose table is there."""
        return frozenset(
            files.split(path)[1].removesuffix(".parquet")
            for path in files.list_folder(self.folder, suffix=".parquet")
        )

    def sizes(self, unit_names: Iterable[str]) -> np.ndarray:
        """Bytes of the tables of some units: int64 [n].

        Raises:
          KeyError: if a unit has no table.
        """
        path_to_size = files.list_folder(self.folder, suffix=".parquet")
        sizes = [path_to_size[self.path(name)] for name in unit_names]
        return np.array(sizes, np.int64)

    def read(self, unit_name: str, columns: list[str] | None = None) -> pa.Table:
        """Reads the table of a unit; `columns` None reads all."""
        with open_table(self.path(unit_name)) as file:
            return pq.read_table(file, columns=columns, pre_buffer=True)

    def write(self, unit_name: str, table: pa.Table) -> None:
        """Writes the table of a unit: all of it, or nothing."""
        buffer = io.BytesIO()
        # A dictionary of embeddings makes them seven times slower to read.
        texts = [f.name for f in table.schema if pa.types.is_string(f.type)]
        pq.write_table(table, buffer, compression="zstd", use_dictionary=texts)
        path, data = self.path(unit_name), buffer.getvalue()
        files.write(path, data)
        if is_object_url(path):
            recent_tables.keep(path, data)
