"""Connected components of pairs of numbers, on any number of workers.

In: pairs of numbers that belong together. Out: for each number the smallest one of its
component, its root. No worker holds more than its share of the pairs, but for the last
step: it holds those that two rounds of merging have left. Of random trees that is 1 of
15 pairs, and of one long chain 1 of 4.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from pipeline.selection.duplicates.forests import find_roots
from pipeline.selection.duplicates.members import mix, split_by

N_PARTITIONS = 256  # of images: does not change the outcome, but what a worker holds
_N_ROUNDS = 2

Keyed = tuple[int, np.ndarray]  # partition, entries


def partition(numbers: np.ndarray) -> np.ndarray:
    """The partitions of numbers, int64 [n]."""
    return (mix(numbers) % np.uint64(N_PARTITIONS)).astype(np.int64)


def by_column(column: int, pairs: np.ndarray) -> Iterator[Keyed]:
    """Yields (partition, its pairs), by one number of each pair."""
    yield from split_by(partition(pairs[:, column]), pairs)


def by_both(pairs: np.ndarray) -> Iterator[Keyed]:
    """Yields (partition, its pairs), by either number of each pair."""
    both = np.concatenate([partition(pairs[:, 0]), partition(pairs[:, 1])])
    yield from split_by(both, np.concatenate([pairs, pairs]))


class FindRoots(beam.PTransform):
    """Maps pairs of numbers, int64 [n, 2], to (partition of number, number and root).

    The root is the smallest number of the component. Both are blocks; pairs may be
    repeated.
    """

    def __init__(self, n_rounds: int = _N_ROUNDS) -> None:
        super().__init__()
        self._n_rounds = n_rounds

    def expand(self, pairs: beam.PCollection[np.ndarray]) -> beam.PCollection[Keyed]:
        if not self._n_rounds:
            return (
                pairs
                | "Bring all together" >> beam.Map(lambda block: (0, block))
                | "Group all" >> beam.GroupByKey()
                | "Find all roots" >> beam.FlatMapTuple(merge_pairs)
            )
        merged = (
            pairs
            | "Spread pairs" >> beam.FlatMap(by_both)
            | "Group pairs" >> beam.GroupByKey()
            | "Merge pairs" >> beam.FlatMapTuple(merge_pairs)
            | "Group numbers" >> beam.GroupByKey()
            | "Compare roots"
            >> beam.ParDo(CompareRoots()).with_outputs("pairs", main="roots")
        )
        further = merged.pairs | "Merge again" >> FindRoots(self._n_rounds - 1)
        grouped = {"numbers": merged.roots, "roots": further}
        return (
            grouped
            | "Bring roots to numbers" >> beam.CoGroupByKey()
            | "Follow roots" >> beam.FlatMapTuple(follow_roots)
        )


def merge_pairs(key: int, blocks: Iterable[np.ndarray]) -> Iterator[Keyed]:
    """Yields (partition of number, number and root), of components of some pairs."""
    del key
    yield from by_column(0, np.stack(find_roots(np.concatenate(list(blocks))), axis=1))


class CompareRoots(beam.DoFn):
    """Yields (partition of root, number and its first root), and pairs of its roots."""

    def process(
        self, keyed: tuple[int, Iterable[np.ndarray]]
    ) -> Iterator[Keyed | TaggedOutput[Literal["pairs"], np.ndarray]]:
        found = np.unique(np.concatenate(list(keyed[1])), axis=0)
        _, first, place = np.unique(found[:, 0], return_index=True, return_inverse=True)
        yield from by_column(1, found[first])
        pairs = np.stack([found[first, 1][place], found[:, 1]], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if len(pairs):
            yield TaggedOutput("pairs", np.unique(pairs, axis=0))


def follow_roots(key: int, grouped: dict[str, Iterable[np.ndarray]]) -> Iterator[Keyed]:
    """Yields (partition of number, number and the root of its root)."""
    del key
    roots = concatenate_pairs(grouped["roots"])
    for numbers in grouped["numbers"]:
        last = lookup(numbers[:, 1], roots)
        yield from by_column(0, np.stack([numbers[:, 0], last], axis=1))


def concatenate_pairs(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """All pairs of some blocks, by their first number: int64 [n, 2]."""
    pairs = np.concatenate([np.empty((0, 2), np.int64), *blocks])
    return pairs[np.argsort(pairs[:, 0])]


def lookup(numbers: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The second number of the pair that begins with each one; itself without one.

    >>> lookup(np.array([5, 9, 7]), np.array([[5, 1], [7, 2]]))
    array([1, 9, 2])
    """
    if not len(pairs):
        return numbers
    place = np.searchsorted(pairs[:, 0], numbers).clip(max=len(pairs) - 1)
    return np.where(pairs[place, 0] == numbers, pairs[place, 1], numbers)
