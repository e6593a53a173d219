"""Parquet tables of rows: one table per lot, with a small summary beside it.

A table is complete or absent, so a listing of a folder shows which lots still have to
be processed. A summary says of a table what launchers ask, so that they read no table.
"""

import dataclasses
import functools
import hashlib
import io
import json
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import VERSION
from pipeline.storage import files, recent_tables
from pipeline.storage.object_urls import is_object_url

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

SUMMARY_SUFFIX = ".summary.json"
FILES_PER_TABLE = 2  # with its summary
ROWS_PER_GROUP = 32_768  # 50 MB of 768 numbers of 2 bytes

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
class LotTables:
    """One Parquet table per lot, in one folder named by a fingerprint.

    Beside each table lies its summary, `<lot>.summary.json`, which is written last: a
    table without one is not there yet.
    """

    folder: str

    def path(self, lot_name: str) -> str:
        """Where the table of a lot lies."""
        return files.join(self.folder, f"{lot_name}.parquet")

    def summary_path(self, lot_name: str) -> str:
        """Where the summary of a lot's table lies."""
        return files.join(self.folder, f"{lot_name}{SUMMARY_SUFFIX}")

    def has(self, lot_name: str) -> bool:
        """Whether the table of a lot is there, with its summary."""
        paths = (self.summary_path(lot_name), self.path(lot_name))
        return all(map(files.is_file, paths))

    def lot_names(self, prefix: str = "", known: Iterable[str] = ()) -> frozenset[str]:
        """Lots whose table is there, or those whose names begin with a prefix.

        Args:
          known: lots that are likely there, which makes this faster.
        """
        ends = (".parquet", SUMMARY_SUFFIX)
        paths = sorted(files.join(self.folder, x + end) for x in known for end in ends)
        names = frozenset(files.facts_in(self.folder, prefix=prefix, known=paths))
        tables = {name.removesuffix(".parquet") for name in names}
        return frozenset(x for x in tables if f"{x}{SUMMARY_SUFFIX}" in names) - names

    def sizes(self, lot_names: Iterable[str]) -> np.ndarray:
        """Bytes of the tables of some lots: int64 [n].

        Raises:
          KeyError: if a lot has no table.
        """
        path_to_size = files.list_folder(self.folder, suffix=".parquet")
        sizes = [path_to_size[self.path(name)] for name in lot_names]
        return np.array(sizes, np.int64)

    def read(self, lot_name: str, columns: list[str] | None = None) -> pa.Table:
        """Reads the table of a lot; `columns` None reads all."""
        with open_table(self.path(lot_name)) as file:
            return pq.read_table(file, columns=columns, pre_buffer=True)

    def take(
        self, lot_name: str, rows: Sequence[int], columns: list[str] | None = None
    ) -> pa.Table:
        """Some rows of a lot's table, in that order; reads the groups that hold them.

        Raises:
          IndexError: if there is no such row.
        """
        wanted = np.asarray(rows, np.int64)
        with open_table(self.path(lot_name)) as file:
            opened = pq.ParquetFile(file, pre_buffer=True)
            metadata = opened.metadata
            groups = range(metadata.num_row_groups)
            sizes = np.array([metadata.row_group(g).num_rows for g in groups], np.int64)
            first = sizes.cumsum() - sizes
            group_of_row = np.searchsorted(sizes.cumsum(), wanted, side="right")
            places = wanted - first[group_of_row]
            to_read = np.unique(group_of_row)
            table = opened.read_row_groups(to_read.tolist(), columns)
        read = sizes[to_read]
        places += (read.cumsum() - read)[np.searchsorted(to_read, group_of_row)]
        return table.take(pa.array(places))

    def read_summary(self, lot_name: str) -> dict[str, typing.Any]:
        """What a table says of itself: `rows`, `sha256`, `version`, and more by kind.

        Raises:
          FileNotFoundError: if there is no such table.
        """
        return json.loads(files.read(self.summary_path(lot_name)))

    def write(
        self,
        lot_name: str,
        table: pa.Table,
        facts: Mapping[str, typing.Any] | None = None,
    ) -> None:
        """Writes the table of a lot, and then its summary with some more facts."""
        buffer = io.BytesIO()
        with _open_writer(buffer, table.schema) as writer:
            writer.write_table(table, ROWS_PER_GROUP)
        path, data = self.path(lot_name), buffer.getvalue()
        files.write(path, data)
        if is_object_url(path):
            recent_tables.keep(path, data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.write_summary(lot_name, table.num_rows, sha256, facts)

    def replace(
        self, lot_name: str, table: pa.Table, facts: Mapping[str, typing.Any]
    ) -> None:
        """Writes a table and its summary; of a table that is the same, the latter."""
        buffer = io.BytesIO()
        with _open_writer(buffer, table.schema) as writer:
            writer.write_table(table, ROWS_PER_GROUP)
        sha256 = hashlib.sha256(buffer.getbuffer()).hexdigest()
        if self.has(lot_name):
            if self.read_summary(lot_name)["sha256"] == sha256:
                self.write_summary(lot_name, table.num_rows, sha256, facts)
                return
            files.delete(self.folder, [f"{lot_name}{SUMMARY_SUFFIX}"])
        self.write(lot_name, table, facts)

    def write_parts(
        self,
        lot_name: str,
        schema: pa.Schema,
        parts: Iterable[pa.Table],
        facts: Mapping[str, typing.Any] | None = None,
    ) -> None:
        """Writes a table, however its rows are cut into parts, as one of equal bytes.

        In memory is one group of rows.
        """
        n_rows = 0
        with tempfile.TemporaryDirectory() as folder:
            local = f"{folder}/table.parquet"
            with _open_writer(local, schema) as writer:
                for group in _regroup(parts, schema):
                    writer.write_table(group, ROWS_PER_GROUP)
                    n_rows += group.num_rows
            _, sha256 = files.publish(local, self.path(lot_name))
        self.write_summary(lot_name, n_rows, sha256, facts)

    def write_summary(
        self,
        lot_name: str,
        n_rows: int,
        sha256: str,
        facts: Mapping[str, typing.Any] | None = None,
    ) -> None:
        """Says that a table is there."""
        content = {"rows": n_rows, "sha256": sha256, "version": VERSION}
        data = json.dumps(content | dict(facts or {}), sort_keys=True).encode()
        files.write(self.summary_path(lot_name), data + b"\n")

    def delete(self, lot_names: Iterable[str]) -> None:
        """Removes the tables of some lots, their summaries first."""
        names = list(lot_names)
        for suffix in (SUMMARY_SUFFIX, ".parquet"):
            files.delete(self.folder, [f"{name}{suffix}" for name in names])


def _open_writer(where: str | io.BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    # A dictionary of embeddings makes them seven times slower to read.
    texts = [f.name for f in schema if pa.types.is_string(f.type)]
    return pq.ParquetWriter(where, schema, compression="zstd", use_dictionary=texts)


def _regroup(parts: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the rows of all parts in groups of ROWS_PER_GROUP."""
    waiting, n_waiting = [schema.empty_table()], 0
    for part in parts:
        waiting.append(part.cast(schema))
        n_waiting += part.num_rows
        while n_waiting >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting).combine_chunks()
            yield joined.slice(0, ROWS_PER_GROUP)
            waiting = [joined.slice(ROWS_PER_GROUP)]
            n_waiting -= ROWS_PER_GROUP
    if n_waiting:
        yield pa.concat_tables(waiting).combine_chunks()
