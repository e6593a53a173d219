"""The pairs that the report shows: those whose identities have the smallest hashes.

In: identities, one lot at a time and in any order. Out: locations of pairs, the same
on every machine. Memory depends only on the number of pairs requested.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.selection.hashed_random import unit_hashes

_SALT = "report"


class PairLocation(NamedTuple):
    """Where a pair of a run is stored."""

    lot: int  # position among the lots of the run
    row: int

    @property
    def key(self) -> str:
        """The identifier of the pair in the page."""
        return f"{self.lot}-{self.row}"


def hash_identities(identities: Sequence[bytes]) -> np.ndarray:
    """Hashes in [0, 1), float64 [n]; independent of those that decide on pairs."""
    return unit_hashes(identities, _SALT)


class SmallestKeys:
    """Collects the `n` pairs with the smallest keys; ties go to the first location."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._keys = np.empty(0)
        self._lot = np.empty(0, np.int64)
        self._row = np.empty(0, np.int64)

    def add(self, lots: np.ndarray | int, rows: np.ndarray, keys: np.ndarray) -> None:
        """Adds rows of one lot or of several; each lot is added once."""
        lots = np.broadcast_to(lots, rows.shape)
        if len(self._keys) > self._n:
            is_small = keys <= self._keys[-1]
            lots, rows, keys = lots[is_small], rows[is_small], keys[is_small]
        all_keys = np.concatenate([self._keys, keys])
        all_lots = np.concatenate([self._lot, lots])
        all_rows = np.concatenate([self._row, rows])
        order = np.lexsort((all_rows, all_lots, all_keys))[: self._n + 1]
        self._keys, self._lot = all_keys[order], all_lots[order]
        self._row = all_rows[order]

    def locations(self) -> list[PairLocation]:
        """The collected pairs, in ascending order of their keys."""
        return self._first(min(self._n, len(self._keys)))

    def row_to_key(self) -> dict[int, float]:
        """The collected pairs, all of one lot, and the next one."""
        return dict(zip(self._row.tolist(), self._keys.tolist(), strict=True))

    def whole_groups(self) -> list[PairLocation]:
        """The collected pairs, without a key that was only collected in part.

        Pairs of one key are returned together or not at all, unless a single key has
        more than `n` pairs.
        """
        if len(self._keys) <= self._n:
            return self.locations()
        n_whole = int(np.searchsorted(self._keys, self._keys[-1]))
        return self._first(n_whole or self._n)

    def _first(self, n: int) -> list[PairLocation]:
        lots, rows = self._lot[:n].tolist(), self._row[:n].tolist()
        return list(map(PairLocation, lots, rows))
