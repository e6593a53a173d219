"""Exact duplicates: of all pairs with the same image bytes, one is kept.

All transforms map PCollection[LotDecisions] to PCollection[LotDecisions].
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Literal

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, TaggedOutput

from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.lot_decisions import (
    LotDecisions,
    read_rows,
    to_hex,
    to_words,
)
from pipeline.selection.lot_join import join_by_lot

_MIN_GROUPS = 256  # of the shuffle, by image hash
_PAIRS_PER_GROUP = 2**20  # of larger pools: 107 MB while it is searched

# Bytes per pair of `Identities` (row, image hash, sample id) and of `Repeats`.
_IDENTITY_BYTES = 8 + 16 + 16
_REPEAT_BYTES = 8 + 8 + 16
# Peak of `find_repeats` per pair: besides the identity its joined copy, the order, the
# hashes in this order and whether neighbors are equal.
_PEAK_BYTES = 2 * _IDENTITY_BYTES + 8 + 2 * 8 + 3


@dataclasses.dataclass(frozen=True, eq=False)
class Identities:
    """Identities of n pairs of one lot, as hashes of two words each."""

    lot_name: str
    uri: str
    row: np.ndarray  # int64 [n], ascending
    image_hash: np.ndarray  # uint64 [n, 2]
    sample_id: np.ndarray  # uint64 [n, 2]

    def take(self, places: np.ndarray) -> "Identities":
        """The pairs at some places, which must ascend."""
        return dataclasses.replace(
            self,
            row=self.row[places],
            image_hash=self.image_hash[places],
            sample_id=self.sample_id[places],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Repeats:
    """Rows of one lot that repeat an image.

    `kept_id` is the id of the pair that is kept, unless another `Repeats` of the lot
    has the row `first`: that pair is then a repeat as well, of the same pair.
    """

    row: np.ndarray  # int64 [n]
    first: np.ndarray  # int64 [n], of the same image in the lot, perhaps `row` itself
    kept_id: np.ndarray  # uint64 [n, 2]


class DropExactDuplicates(beam.PTransform):
    """Keeps one pair of all that have the same image bytes.

    Equal sample ids imply equal images. The pair with the smallest sample id is kept;
    of equal ids, the first by the path of the lot's first shard, and then by row. Only
    droppable pairs take part.

    Of each image a lot sends one pair through the shuffle, to as many groups as the
    pool needs, so no worker holds more for an image than one pair of each lot.
    """

    def __init__(self, run: RunFolder, is_on: bool) -> None:
        super().__init__()
        self._run = run
        self._is_on = is_on

    def expand(self, decisions: beam.PCollection[LotDecisions]) -> beam.PCollection:
        if not self._is_on:
            return decisions
        groups = AsSingleton(
            decisions
            | "Count pairs to compare" >> beam.Map(lambda v: len(v.droppable_rows))
            | "Add counts to compare" >> beam.CombineGlobally(sum)
            | "Choose number of groups" >> beam.Map(n_groups)
        )
        spread, own = decisions | "Spread by image hash" >> beam.FlatMap(
            spread_identities, self._run, groups
        ).with_outputs("own", main="spread")
        others = (
            spread
            | "Group by image hash" >> beam.GroupByKey()
            | "Find repeats" >> beam.FlatMapTuple(find_repeats)
        )
        repeats = (own, others) | "Take all repeats" >> beam.Flatten()
        joined = join_by_lot(decisions, repeats, "repeats")
        return joined | "Drop repeats" >> beam.MapTuple(drop_repeats)


def n_groups(n_pairs: float) -> int:
    """How many groups a pool has; their number does not change the outcome."""
    return max(_MIN_GROUPS, math.ceil(n_pairs / _PAIRS_PER_GROUP))


def spread_identities(
    decisions: LotDecisions, run: RunFolder, n_groups: int
) -> Iterator[
    tuple[int, Identities] | TaggedOutput[Literal["own"], tuple[str, Repeats]]
]:
    """Yields (group, identities) of the droppable pairs of a lot, one of each image.

    The output `own` has (lot name, repeats) for the others.
    """
    rows = decisions.droppable_rows
    columns = ("image_hash", "sample_id")
    table = read_rows(run.pairs(decisions.lot.source), decisions, rows, *columns)
    name, uri = decisions.lot.name, decisions.lot.shards[0].uri
    words = (to_words(table[column]) for column in columns)
    firsts, own = set_own_repeats_aside(Identities(name, uri, rows, *words))
    if len(own.row):
        yield TaggedOutput("own", (name, own))
    group = (firsts.image_hash[:, 1] % n_groups).astype(np.int64)
    order = np.argsort(group, kind="stable")
    keys, starts = np.unique(group[order], return_index=True)
    for key, mine in zip(keys.tolist(), np.split(order, starts[1:]), strict=False):
        yield key, firsts.take(mine)


def set_own_repeats_aside(lot: Identities) -> tuple[Identities, Repeats]:
    """The first pair of each image of a lot, and the repeats of these pairs."""
    repeat, first = find_equals(lot.image_hash, lot.sample_id)
    own = Repeats(lot.row[repeat], lot.row[first], lot.sample_id[first])
    return lot.take(np.delete(np.arange(len(lot.row)), repeat)), own


def find_repeats(
    group: int, blocks: Iterable[Identities]
) -> Iterator[tuple[str, Repeats]]:
    """Yields (lot name, repeats) of the pairs that are not kept."""
    del group
    blocks = sorted(blocks, key=lambda block: block.uri)
    row = np.concatenate([block.row for block in blocks])
    image_hash = np.concatenate([block.image_hash for block in blocks])
    sample_id = np.concatenate([block.sample_id for block in blocks])
    repeat, first = find_equals(image_hash, sample_id)
    ends = np.cumsum([len(block.row) for block in blocks])
    order = np.argsort(repeat)
    repeat, first = repeat[order], first[order]
    mine = np.split(np.arange(len(repeat)), np.searchsorted(repeat, ends))
    for block, places in zip(blocks, mine, strict=False):
        if len(places):
            rows = row[repeat[places]]
            yield block.lot_name, Repeats(rows, rows, sample_id[first[places]])


def find_equals(
    image_hash: np.ndarray, sample_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of pairs that repeat an image, and of the pair that is kept of it.

    It is the pair with the smallest sample id; of equal ids, the first.
    """
    order = np.argsort(image_hash[:, 0])
    word = image_hash[order, 0]
    is_equal = word[1:] == word[:-1]
    is_shared = np.append(is_equal, False) | np.append(False, is_equal)
    shared = order[is_shared[: len(order)]]  # few pairs, as a rule
    # lexsort takes its last key first.
    keys = (shared, *sample_id[shared].T[::-1], *image_hash[shared].T[::-1])
    shared = shared[np.lexsort(keys)]
    hashes = image_hash[shared]
    is_repeat = np.zeros(len(shared), dtype=bool)
    is_repeat[1:] = (hashes[1:] == hashes[:-1]).all(axis=1)
    kept = shared[~is_repeat][np.cumsum(~is_repeat) - 1]
    return shared[is_repeat], kept[is_repeat]


def group_bytes(n_pairs: float) -> float:
    """Peak memory of one group of a pool of `n_pairs`."""
    return _PEAK_BYTES * n_pairs / n_groups(n_pairs)


def shuffle_bytes(n_pairs: float, n_repeats: float) -> float:
    """Bytes of identities and repeats that cross the shuffles, without decisions."""
    return _IDENTITY_BYTES * n_pairs + _REPEAT_BYTES * n_repeats


def drop_repeats(decisions: LotDecisions, found: Iterable[Repeats]) -> LotDecisions:
    """Drops the repeats of one lot; the detail is the sample id of the pair kept."""
    row, kept_id = kept_ids(found)
    details = [to_hex(words) for words in kept_id]
    return decisions.drop(row, DropReason.EXACT_DUPLICATE, detail=details)


def kept_ids(found: Iterable[Repeats]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all repeats of a lot, ascending, and the ids of the pairs kept."""
    none = np.empty(0, np.int64)
    found = [Repeats(none, none, np.empty((0, 2), np.uint64)), *found]
    row = np.concatenate([repeats.row for repeats in found])
    first = np.concatenate([repeats.first for repeats in found])
    kept_id = np.concatenate([repeats.kept_id for repeats in found])
    order = np.argsort(row)
    row, first, kept_id = row[order], first[order], kept_id[order]
    place = np.searchsorted(row, first).clip(max=max(len(row) - 1, 0))
    is_moved = row[place] == first
    return row, np.where(is_moved[:, None], kept_id[place], kept_id)
