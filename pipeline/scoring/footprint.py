"""Bytes and tables of the stage score, for the forecast.

In: a run. Out: what its tables take on disk, and what a worker holds in memory.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Unit
from pipeline.storage.tables import open_table

# A dimension of an embedding in a worker: float32 from the encoder, then float16.
_DIMENSION_BYTES = 4 + 2


def table_bytes(run: RunFolder, units: Sequence[Unit]) -> np.ndarray:
    """Bytes of the pairs, languages and embeddings of each unit: int64 [units]."""
    n_bytes = np.zeros(len(units), np.int64)
    for tables_of in (run.pairs, run.languages, run.embeddings):
        for source in dict.fromkeys(unit.source for unit in units):
            tables = tables_of(source)
            rows = [row for row, unit in enumerate(units) if unit.source == source]
            n_bytes[rows] += tables.sizes(units[row].name for row in rows)
    return n_bytes


def n_tables(run: RunFolder) -> int:
    """Tables of one unit: pairs, languages, embeddings, and one per descriptor."""
    return 3 + len(run.config.selection.descriptors)


def embedding_dim(run: RunFolder) -> int:
    """Dimensions of an image embedding of a scored run."""
    unit = run.units[0]
    with open_table(run.embeddings(unit.source).path(unit.name)) as file:
        return pq.read_schema(file).field("embedding").type.list_size


def worker_bytes(dim: int, pairs_per_shard: float) -> dict[str, float]:
    """Peak memory of one worker, besides the models, by what it holds.

    Args:
      dim: Dimensions of an image embedding.
      pairs_per_shard: Pairs that a worker scores before it writes a table.
    """
    return {"score: embeddings of a shard": dim * _DIMENSION_BYTES * pairs_per_shard}
