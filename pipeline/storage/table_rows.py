"""Rows of a Parquet table by their numbers, without reading the others.

In: the path of a table. Out: tables of consecutive rows, of which only the groups of
rows are read that have some of them.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.tables import open_table


class TableRows:
    """An open table; reads some of its columns."""

    def __init__(self, parquet: pq.ParquetFile, columns: Sequence[str] | None) -> None:
        metadata = parquet.metadata
        counts = [
            metadata.row_group(group).num_rows
            for group in range(metadata.num_row_groups)
        ]
        self._parquet = parquet
        self._columns = None if columns is None else list(columns)
        self._starts = np.cumsum([0, *counts])

    @property
    def n_rows(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`, of which there is at least one."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        groups = list(range(first, last))
        found = self._parquet.read_row_groups(groups, columns=self._columns)
        return found.slice(start - int(self._starts[first]), stop - start)


@contextlib.contextmanager
def open_rows(path: str, columns: Sequence[str] | None = None) -> Iterator[TableRows]:
    """Opens a table.

    Raises:
      FileNotFoundError: if there is no such table.
    """
    with open_table(path) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
        yield TableRows(parquet, columns)
