"""Image embeddings as `score` stored them, and as unit vectors.

In: the tables of embeddings of a unit. Out: matrices with one row per pair, of the rows
that are asked for and have an embedding.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.run_folder import RunFolder
from pipeline.selection.unit_decisions import UnitDecisions, expect_rows
from pipeline.sources.shards import Unit
from pipeline.storage import files

ROWS_PER_SEARCH = 4096  # 8 MB of float32 at 512 dimensions; a block of FAISS


def read_vectors(
    run: RunFolder, decisions: UnitDecisions, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` with an embedding, and their vectors: float32, of length one."""
    found = read_blocks(run, decisions, rows)
    return _with_direction(rows, ((place, *normalize(e)) for place, e in found))


def read_embeddings(
    run: RunFolder, decisions: UnitDecisions, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` with an embedding, and these as they are stored."""
    found = read_blocks(run, decisions, rows)
    return _with_direction(rows, ((place, e, normalize(e)[1]) for place, e in found))


def _with_direction(
    rows: np.ndarray, found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts parts together: places in `rows`, vectors, and which have a direction."""
    parts = [(rows[place[has]], vectors[has]) for place, vectors, has in found]
    parts = parts or [(rows[:0], np.empty((0, 0), np.float16))]
    with_embedding, matrices = map(np.concatenate, zip(*parts, strict=True))
    return with_embedding, matrices


def normalize(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as float32 of length one, and which rows have a direction."""
    vectors = embeddings.astype(np.float32)
    length = np.linalg.norm(vectors, axis=1)
    has_direction = np.isfinite(length) & (length > 0)
    length = np.where(has_direction, length, 1)
    return np.ascontiguousarray(vectors / length[:, None]), has_direction


def count_rows(run: RunFolder, units: Iterable[Unit]) -> int:
    """Rows of the tables of pairs, readable or not."""
    return sum(_n_rows(run.pairs(unit.source).path(unit.name)) for unit in units)


def _n_rows(path: str) -> int:
    with files.open_for_reading(path) as file:
        return pq.read_metadata(file).num_rows


def read_matrix(run: RunFolder, unit: Unit) -> np.ndarray:
    """The vectors of all pairs of a unit, as they are stored."""
    table = run.vectors(unit.source).read(unit.name, columns=["embedding"])
    return _to_matrix(table["embedding"].combine_chunks())


def read_blocks(
    run: RunFolder, decisions: UnitDecisions, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields places in `rows`, which ascend, and the embeddings of these pairs."""
    path = run.vectors(decisions.unit.source).path(decisions.unit.name)
    with files.open_for_reading(path) as file:
        parquet = pq.ParquetFile(file)
        expect_rows(path, parquet.metadata.num_rows, decisions)
        first_row = 0
        for batch in parquet.iter_batches(ROWS_PER_SEARCH, columns=["embedding"]):
            start, end = np.searchsorted(rows, [first_row, first_row + len(batch)])
            if start < end:
                matrix = _to_matrix(batch.column("embedding"))
                yield np.arange(start, end), matrix[rows[start:end] - first_row]
            first_row += len(batch)


def _to_matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def stored_dim(run: RunFolder, unit: Unit) -> int:
    """The width of the embeddings that a unit has, from the schema of their table."""
    with files.open_for_reading(run.vectors(unit.source).path(unit.name)) as file:
        return pq.read_schema(file).field("embedding").type.list_size


def embedding_dim(run: RunFolder) -> int | None:
    """Numbers of an image embedding; None while the first shard has none."""
    unit = run.units[0]
    path = run.embeddings(unit.source).path(unit.name)
    return stored_dim(run, unit) if files.is_file(path) else None


def expect_dim(name: str, found: int, expected: int) -> None:
    """Raises ValueError if a set called `name` has another width than the pool."""
    if found != expected:
        raise ValueError(
            f"{name}: embeddings of {found} dimensions, expected {expected} like the"
            " pool's: score both with one encoder"
        )
