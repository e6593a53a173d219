"""Similarities of images of the pool to a set, computed once and stored.

A lot has any number of tables `<lot>.<digest of the rows in it>.parquet`, which never
change. A selection that compares more images adds a table with those images, so another
threshold only searches for images that were never compared.
"""

import hashlib

import numpy as np
import pyarrow as pa

from pipeline.storage.tables import LotTables

UNKNOWN = -1  # the nearest image of a pair that was never compared


def read(
    tables: LotTables, lot_name: str, n_pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and position of the nearest image, for every pair of a lot.

    Similarities are cosines, float32, NaN for a pair without an embedding. Positions
    are UNKNOWN for a pair that was never compared.
    """
    similarity = np.full(n_pairs, np.nan, np.float32)
    image = np.full(n_pairs, UNKNOWN)
    for name in sorted(tables.lot_names(f"{lot_name}.")):
        table = tables.read(name)
        row = table["row"].to_numpy()
        similarity[row] = table["similarity"].to_numpy()
        image[row] = table["image"].to_numpy()
    return similarity, image


def add(
    tables: LotTables,
    lot_name: str,
    rows: np.ndarray,
    similarity: np.ndarray,
    image: np.ndarray,
) -> None:
    """Stores the similarities of rows that `read` did not know."""
    columns = {
        "row": rows.astype(np.int32),
        "similarity": similarity.astype(np.float32),
        "image": image.astype(np.int32),
    }
    digest = hashlib.blake2b(columns["row"].tobytes(), digest_size=6)
    tables.write(f"{lot_name}.{digest.hexdigest()}", pa.table(columns))
