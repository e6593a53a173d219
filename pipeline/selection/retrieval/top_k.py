"""The k best images of each group over all shards, the same in any order of work.

In: candidates of each lot, as arrays. Out: for each lot, the rows among the k best of
their group, and the seed set that they are hits of.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

_BLOCKS_IN_MEMORY = 16  # that a worker collects before it ranks them


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """Images that are ranked within groups, of which the first `n_places` are kept.

    The smallest `rank` comes first; then the smallest sample id, then the first by name
    of the lot and row.
    """

    n_places: int
    lot_names: tuple[str, ...]  # ascending
    group: np.ndarray  # int64 [n]
    rank: np.ndarray  # float64 [n]
    sample_id: np.ndarray  # uint64 [n, 2]
    lot: np.ndarray  # int64 [n], position in lot_names
    row: np.ndarray  # int64 [n]

    @classmethod
    def of_lot(
        cls,
        lot_name: str,
        n_places: int,
        *,
        group: np.ndarray,
        rank: np.ndarray,
        sample_id: np.ndarray,
        row: np.ndarray,
    ) -> "Candidates":
        """The candidates of one lot."""
        lot = np.zeros(len(row), np.int64)
        return cls(n_places, (lot_name,), group, rank, sample_id, lot, row)

    def take(self, places: np.ndarray) -> "Candidates":
        """Some of the candidates, in the order of `places`."""
        used, lot = np.unique(self.lot[places], return_inverse=True)
        return dataclasses.replace(
            self,
            lot_names=tuple(self.lot_names[i] for i in used),
            group=self.group[places],
            rank=self.rank[places],
            sample_id=self.sample_id[places],
            lot=lot,
            row=self.row[places],
        )


def top_k(blocks: Sequence[Candidates]) -> Candidates:
    """The first `n_places` candidates of each group, by group and rank."""
    everyone = _concatenate(blocks)
    order = np.lexsort(  # takes its last key first
        (
            everyone.row,
            everyone.lot,
            everyone.sample_id[:, 1],
            everyone.sample_id[:, 0],
            everyone.rank,
            everyone.group,
        )
    )
    group = everyone.group[order]
    place_in_group = np.arange(len(group)) - np.searchsorted(group, group)
    return everyone.take(order[place_in_group < everyone.n_places])


def _concatenate(blocks: Sequence[Candidates]) -> Candidates:
    names = sorted({name for block in blocks for name in block.lot_names})
    name_to_lot = {name: lot for lot, name in enumerate(names)}
    lots = [
        np.array([name_to_lot[name] for name in block.lot_names], np.int64)[block.lot]
        for block in blocks
    ]
    return Candidates(
        n_places=blocks[0].n_places,
        lot_names=tuple(names),
        group=np.concatenate([block.group for block in blocks]),
        rank=np.concatenate([block.rank for block in blocks]),
        sample_id=np.concatenate([block.sample_id for block in blocks]),
        lot=np.concatenate(lots),
        row=np.concatenate([block.row for block in blocks]),
    )


class TopKPerGroup(beam.CombineFn):
    """`top_k` over blocks of candidates with the same `n_places`."""

    def create_accumulator(self) -> list[Candidates]:
        return []

    def add_input(
        self, accumulator: list[Candidates], candidates: Candidates
    ) -> list[Candidates]:
        collected = [*accumulator, candidates]
        full = len(collected) >= _BLOCKS_IN_MEMORY
        return [top_k(collected)] if full else collected

    def merge_accumulators(
        self, accumulators: Iterable[list[Candidates]]
    ) -> list[Candidates]:
        merged: list[Candidates] = []
        for accumulator in accumulators:
            merged = self.compact([*merged, *accumulator])
        return merged

    def compact(self, accumulator: list[Candidates]) -> list[Candidates]:
        return [top_k(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[Candidates]) -> Candidates:
        return top_k(accumulator)


@dataclasses.dataclass(frozen=True, eq=False)
class SeedHits:
    """Rows of one lot that are hits of a seed set."""

    set_name: str
    row: np.ndarray  # int64, ascending


def hits_by_lot(set_name: str, won: Candidates) -> Iterator[tuple[str, SeedHits]]:
    """Yields (lot name, hits of a seed set in it)."""
    for lot, lot_name in enumerate(won.lot_names):
        yield lot_name, SeedHits(set_name, np.unique(won.row[won.lot == lot]))
