"""Counts of integers over a pool, the same in any order of work.

In: arrays of integers, one part of the pool at a time. Out: how often each occurs.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np

_BLOCKS_IN_MEMORY = 4  # that a worker collects before it adds them up
_NUMBERS_PER_RANGE = 2**20  # 16 MB of counts

BYTES = 8 + 8  # of a number and its count
# Peak of adding up, per number: the blocks, joined, their order, sorted, differences.
PEAK_BYTES = _BLOCKS_IN_MEMORY * (2 * BYTES + 8 + BYTES + 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """The numbers that occur, and how often each does."""

    number: np.ndarray  # int64 [n], ascending
    count: np.ndarray  # int64 [n], at least 1

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Counts":
        """Counts integers, in any order."""
        return cls(*np.unique(numbers.astype(np.int64), return_counts=True))

    def count_of(self, numbers: np.ndarray) -> np.ndarray:
        """How often each of `numbers` occurs: int64 [m]."""
        place = np.searchsorted(self.number, numbers)
        padded = np.append(self.count, 0)
        is_there = np.append(self.number, -1)[place] == numbers
        return np.where(is_there, padded[place], 0)

    def above(self, least: int) -> "Counts":
        """The numbers that occur more often than `least`."""
        is_above = self.count > least
        return Counts(self.number[is_above], self.count[is_above])

    def by_range(self) -> Iterator[tuple[int, "Counts"]]:
        """Yields (range of numbers, counts of its numbers), for a worker each."""
        ranges, starts = np.unique(self.number // _NUMBERS_PER_RANGE, return_index=True)
        numbers = np.split(self.number, starts[1:])
        counts = np.split(self.count, starts[1:])
        for key, number, count in zip(ranges.tolist(), numbers, counts, strict=False):
            yield key, Counts(number, count)


def sum_counts(blocks: Sequence[Counts]) -> Counts:
    """Adds up counts by number; the sum of no blocks is empty."""
    empty = np.empty(0, np.int64)
    numbers = np.concatenate([empty, *(block.number for block in blocks)])
    counts = np.concatenate([empty, *(block.count for block in blocks)])
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    return Counts(numbers[starts], np.add.reduceat(counts[order], starts))


class SumCounts(beam.CombineFn):
    """`sum_counts` in any order, in at most 300 bytes of memory per number."""

    def create_accumulator(self) -> list[Counts]:
        return []

    def add_input(self, accumulator: list[Counts], tally: Counts) -> list[Counts]:
        collected = [*accumulator, tally]
        full = len(collected) >= _BLOCKS_IN_MEMORY
        return self.compact(collected) if full else collected

    def merge_accumulators(self, accumulators: Iterable[list[Counts]]) -> list[Counts]:
        merged: list[Counts] = []
        for accumulator in accumulators:
            merged = self.compact([*merged, *accumulator])
        return merged

    def compact(self, accumulator: list[Counts]) -> list[Counts]:
        return [sum_counts(accumulator)] if accumulator else []

    def extract_output(self, accumulator: list[Counts]) -> Counts:
        return sum_counts(accumulator)
