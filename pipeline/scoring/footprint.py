"""Bytes and tables of the stage score, for the forecast.

In: a run. Out: what its tables take on disk, and what a worker holds in memory.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Lot
from pipeline.storage.tables import open_table

# A dimension of an embedding in a worker: float32 from the encoder, then float16.
_DIMENSION_BYTES = 4 + 2


def table_bytes(run: RunFolder, lots: Sequence[Lot]) -> np.ndarray:
    """Bytes of the pairs, languages and embeddings of each lot: int64 [lots]."""
    n_bytes = np.zeros(len(lots), np.int64)
    for tables_of in (run.pairs, run.languages, run.embeddings):
        for source in dict.fromkeys(lot.source for lot in lots):
            tables = tables_of(source)
            rows = [row for row, lot in enumerate(lots) if lot.source == source]
            n_bytes[rows] += tables.sizes(lots[row].name for row in rows)
    return n_bytes


def n_tables(run: RunFolder) -> int:
    """Tables of one lot: pairs, languages, embeddings, and one per descriptor."""
    return 3 + len(run.config.selection.descriptors)


def embedding_dim(run: RunFolder) -> int:
    """Dimensions of an image embedding of a scored run."""
    lot = run.lots[0]
    with open_table(run.embeddings(lot.source).path(lot.name)) as file:
        return pq.read_schema(file).field("embedding").type.list_size


def worker_bytes(dim: int, pairs_per_shard: float) -> dict[str, float]:
    """Peak memory of one worker, besides the models, by what it holds.

    Args:
      dim: Dimensions of an image embedding.
      pairs_per_shard: Pairs that a worker scores before it writes a table.
    """
    return {"score: embeddings of a shard": dim * _DIMENSION_BYTES * pairs_per_shard}
