"""Cuts any number of rows into batches of one shape.

XLA compiles a function for every shape it sees, and a row's bits may depend on the
shape; so the last batch is padded with zeros.
"""

from collections.abc import Iterator

import numpy as np


def fixed_batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields `[batch_size, ...]` arrays; only the last has padding, at its end."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * (rows.ndim - 1)
        yield np.pad(batch, padding)


def check_options(batch_size: int, dtype: str) -> None:
    """Raises ValueError unless a model can be run so."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
