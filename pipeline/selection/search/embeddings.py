"""Image embeddings as `score` stored them, and as unit vectors.

In: the table of embeddings of a lot, and rows of it. Out: a matrix of the vectors of
these rows, without those that have no embedding.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.parquet as pq

from pipeline.engine.run_folder import RunFolder
from pipeline.selection.lot_decisions import LotDecisions, expect_rows
from pipeline.sources.shards import Lot
from pipeline.storage import files
from pipeline.storage.tables import (
    from_vector_column,
    open_table,
    read_vector_dim,
)

ROWS_PER_SEARCH = 4096  # 8 MB of float32 at 512 dimensions; a block of FAISS
_ROWS_PER_BLOCK = 4 * ROWS_PER_SEARCH


def read_vector_blocks(
    run: RunFolder, decisions: LotDecisions, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows that have an embedding, and their unit vectors: float32 [n, d].

    A block has at least 16,384 of `rows`, but for the last one.
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for place, embeddings in read_blocks(run, decisions, rows):
        found.append((place, *normalize(embeddings)))
        if sum(len(place) for place, _, _ in found) >= _ROWS_PER_BLOCK:
            yield _with_direction(rows, found)
            found = []
    if found:
        yield _with_direction(rows, found)


def _with_direction(
    rows: np.ndarray, found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Concatenates parts of (positions in `rows`, vectors, whether they are valid)."""
    parts = [(rows[place[has]], vectors[has]) for place, vectors, has in found]
    parts = parts or [(rows[:0], np.empty((0, 0), np.float16))]
    with_embedding, matrices = map(np.concatenate, zip(*parts, strict=True))
    return with_embedding, matrices


def normalize(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales rows to length one; returns them, float32, and which rows could be.

    >>> normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    (array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32), array([ True, False]))
    """
    vectors = embeddings.astype(np.float32)
    length = np.linalg.norm(vectors, axis=1)
    has_direction = np.isfinite(length) & (length > 0)
    length = np.where(has_direction, length, 1)
    return np.ascontiguousarray(vectors / length[:, None]), has_direction


def count_rows(run: RunFolder, lots: Iterable[Lot]) -> int:
    """The number of pairs in lots, readable or not."""
    return sum(_n_rows(run.pairs(lot.source).path(lot.name)) for lot in lots)


def _n_rows(path: str) -> int:
    with open_table(path) as file:
        return pq.read_metadata(file).num_rows


def read_matrix_blocks(run: RunFolder, lot: Lot) -> Iterator[np.ndarray]:
    """Yields the vectors of all pairs of a lot, 4,096 at a time: float16 [n, d]."""
    with open_table(run.vectors(lot.source).path(lot.name)) as file:
        parquet = pq.ParquetFile(file)
        for batch in parquet.iter_batches(ROWS_PER_SEARCH, columns=["embedding"]):
            yield from_vector_column(batch.column("embedding"))


def read_blocks(
    run: RunFolder, decisions: LotDecisions, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields positions in `rows`, which must ascend, and the embeddings of these rows.

    Reads the table block by block, so a large shard does not fill the memory.
    """
    path = run.vectors(decisions.lot.source).path(decisions.lot.name)
    with open_table(path) as file:
        parquet = pq.ParquetFile(file)
        expect_rows(path, parquet.metadata.num_rows, decisions)
        first_row = 0
        for batch in parquet.iter_batches(ROWS_PER_SEARCH, columns=["embedding"]):
            start, end = np.searchsorted(rows, [first_row, first_row + len(batch)])
            if start < end:
                matrix = from_vector_column(batch.column("embedding"))
                yield np.arange(start, end), matrix[rows[start:end] - first_row]
            first_row += len(batch)


def stored_dim(run: RunFolder, lot: Lot) -> int:
    """The width of the embeddings that a lot has, from the schema of their table."""
    return read_vector_dim(run.vectors(lot.source).path(lot.name))


def embedding_dim(run: RunFolder) -> int | None:
    """The width of image embeddings; None while the first shard has none."""
    lot = run.lots[0]
    path = run.embeddings(lot.source).path(lot.name)
    return stored_dim(run, lot) if files.is_file(path) else None


def expect_dim(name: str, found: int, expected: int) -> None:
    """Raises ValueError if a set called `name` has another width than the pool."""
    if found != expected:
        raise ValueError(
            f"{name}: embeddings of {found} dimensions, expected {expected} like the"
            " pool's: score both with one encoder"
        )
