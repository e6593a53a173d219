"""Which pairs the report looks at: those whose identity has the smallest hashes.

In: identities, one unit at a time and in any order. Out: places of pairs, the same on
every machine. Memory hangs on the number that is asked for alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.selection.retrieval.top_k import unit_hashes

_SALT = "report"


class Place(NamedTuple):
    """One pair of a run."""

    unit: int  # position among the units of the run
    row: int

    @property
    def key(self) -> str:
        """How the page calls it."""
        return f"{self.unit}-{self.row}"


def hashes(identities: Sequence[bytes]) -> np.ndarray:
    """Numbers in [0, 1), float64; other ones than those that decide on pairs."""
    return unit_hashes(identities, _SALT)


class Smallest:
    """The `n` places with the smallest keys; of equal keys the first by place."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._keys = np.empty(0)
        self._unit = np.empty(0, np.int64)
        self._row = np.empty(0, np.int64)

    def add(self, unit: int, rows: np.ndarray, keys: np.ndarray) -> None:
        """Takes in rows of one unit; a unit is added once."""
        if len(self._keys) > self._n:
            is_small = keys <= self._keys[-1]
            rows, keys = rows[is_small], keys[is_small]
        all_keys = np.concatenate([self._keys, keys])
        all_units = np.concatenate([self._unit, np.full(len(rows), unit)])
        all_rows = np.concatenate([self._row, rows])
        order = np.lexsort((all_rows, all_units, all_keys))[: self._n + 1]
        self._keys, self._unit = all_keys[order], all_units[order]
        self._row = all_rows[order]

    def places(self) -> list[Place]:
        """By key."""
        return self._places(min(self._n, len(self._keys)))

    def whole_groups(self) -> list[Place]:
        """The places whose key none outside has: all with one key, or none.

        A single key that has more than `n` places is cut all the same.
        """
        if len(self._keys) <= self._n:
            return self.places()
        n_whole = int(np.searchsorted(self._keys, self._keys[-1]))
        return self._places(n_whole or self._n)

    def _places(self, n: int) -> list[Place]:
        units, rows = self._unit[:n].tolist(), self._row[:n].tolist()
        return [Place(*place) for place in zip(units, rows, strict=True)]
