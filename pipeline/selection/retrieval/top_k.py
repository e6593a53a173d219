"""The k best images of each group over all shards, the same in any order of work.

In: candidates of each unit, as arrays. Out: for each unit, the rows among the k best of
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
    of the unit and row.
    """

    n_places: int
    unit_names: tuple[str, ...]  # ascending
    group: np.ndarray  # int64 [n]
    rank: np.ndarray  # float64 [n]
    sample_id: np.ndarray  # uint64 [n, 2]
    unit: np.ndarray  # int64 [n], position in unit_names
    row: np.ndarray  # int64 [n]

    @classmethod
    def of_unit(
        cls,
        unit_name: str,
        n_places: int,
        *,
        group: np.ndarray,
        rank: np.ndarray,
        sample_id: np.ndarray,
        row: np.ndarray,
    ) -> "Candidates":
        """The candidates of one unit."""
        unit = np.zeros(len(row), np.int64)
        return cls(n_places, (unit_name,), group, rank, sample_id, unit, row)

    def take(self, places: np.ndarray) -> "Candidates":
        """Some of the candidates, in the order of `places`."""
        used, unit = np.unique(self.unit[places], return_inverse=True)
        return dataclasses.replace(
            self,
            unit_names=tuple(self.unit_names[i] for i in used),
            group=self.group[places],
            rank=self.rank[places],
            sample_id=self.sample_id[places],
            unit=unit,
            row=self.row[places],
        )


def top_k(blocks: Sequence[Candidates]) -> Candidates:
    """The first `n_places` candidates of each group, by group and rank."""
    everyone = _concatenate(blocks)
    order = np.lexsort(  # takes its last key first
        (
            everyone.row,
            everyone.unit,
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
    names = sorted({name for block in blocks for name in block.unit_names})
    name_to_unit = {name: unit for unit, name in enumerate(names)}
    units = [
        np.array([name_to_unit[name] for name in block.unit_names], np.int64)[
            block.unit
        ]
        for block in blocks
    ]
    return Candidates(
        n_places=blocks[0].n_places,
        unit_names=tuple(names),
        group=np.concatenate([block.group for block in blocks]),
        rank=np.concatenate([block.rank for block in blocks]),
        sample_id=np.concatenate([block.sample_id for block in blocks]),
        unit=np.concatenate(units),
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
    """Rows of one unit that are hits of a seed set."""

    set_name: str
    row: np.ndarray  # int64, ascending


def hits_by_unit(set_name: str, won: Candidates) -> Iterator[tuple[str, SeedHits]]:
    """Yields (unit name, hits of a seed set in it)."""
    for unit, unit_name in enumerate(won.unit_names):
        yield unit_name, SeedHits(set_name, np.unique(won.row[won.unit == unit]))
