"""Bytes and tables of the stage score, for the forecast.

In: a run. Out: what its tables take on disk, and what a worker holds in memory.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from pipeline.config.curation import EncoderConfig
from pipeline.engine import id_index
from pipeline.engine.run_folder import RunFolder
from pipeline.scoring.encoder_handler import EncoderHandler, PreparedPair
from pipeline.sources.shards import Lot
from pipeline.storage.tables import FILES_PER_TABLE, LotTables, open_table

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


def n_files(run: RunFolder) -> int:
    """Files of one lot: of its pairs, languages, embeddings and one table per
    descriptor, and the index of its ids."""
    n_tables = 3 + len(run.config.selection.descriptors)
    return FILES_PER_TABLE * n_tables + 1


def index_bytes(pairs_per_lot: float) -> int:
    """Bytes of the index of ids of one lot."""
    return id_index.n_bytes(math.ceil(pairs_per_lot))


def footer_bytes(run: RunFolder) -> int:
    """Bytes of the tables of one lot that do not grow with its pairs."""
    lot = run.lots[0]
    tables_of = (run.pairs, run.languages, run.embeddings)
    return sum(table_footer_bytes(of(lot.source), lot.name) for of in tables_of)


def table_footer_bytes(tables: LotTables, lot_name: str) -> int:
    """Bytes of one table that do not grow with its rows."""
    with open_table(tables.path(lot_name)) as file:
        return pq.read_metadata(file).serialized_size


def start_model(config: EncoderConfig) -> None:
    """Loads the encoder and embeds one pair, which compiles it, as a worker does."""
    handler = EncoderHandler(config)
    model = handler.load_model()
    side = model.image_size_px
    pixels = np.zeros((side, side, 3), np.uint8)
    handler.run_inference([PreparedPair(pixels, "text")], model)


def embedding_dim(run: RunFolder) -> int:
    """Dimensions of an image embedding of a scored run."""
    lot = run.lots[0]
    with open_table(run.embeddings(lot.source).path(lot.name)) as file:
        return pq.read_schema(file).field("embedding").type.list_size


def worker_bytes(dim: int, pairs_per_shard: float) -> dict[str, float]:
    """Peak memory of one worker, besides the models, by what it holds.

    Args:
      dim: Dimensions of an image embedding.
      pairs_per_shard: Pairs that a worker scores before it writes a part, at most.
    """
    return {"score: embeddings of a part": dim * _DIMENSION_BYTES * pairs_per_shard}
