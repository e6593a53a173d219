"""Exact duplicates: of all pairs with the same image bytes, one is kept.

All transforms map PCollection[UnitDecisions] to PCollection[UnitDecisions].
"""

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np

from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.selection.unit_decisions import (
    UnitDecisions,
    read_rows,
    to_hex,
    to_words,
)
from pipeline.selection.unit_join import join_by_unit

# Groups of the shuffle, by image hash. Their number does not change the outcome, but
# bounds the memory of one group: 5.4 GB for 10^10 pairs (138 bytes each).
N_PARTITIONS = 256

# Bytes per pair of `Identities` (row, image hash, sample id) and of `Repeats`.
_IDENTITY_BYTES = 8 + 16 + 16
_REPEAT_BYTES = 8 + 16
# Peak of `find_repeats` per pair: besides the identity its unit and row, the order, the
# sorted hash and id, and the ids that stay with their positions.
_PEAK_BYTES = _IDENTITY_BYTES + (8 + 8) + 8 + (16 + 16) + (16 + 16 + 8 + 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Identities:
    """Identities of n pairs of one unit, as hashes of two words each."""

    unit_name: str
    uri: str
    row: np.ndarray  # int64 [n]
    image_hash: np.ndarray  # uint64 [n, 2]
    sample_id: np.ndarray  # uint64 [n, 2]


@dataclasses.dataclass(frozen=True, eq=False)
class Repeats:
    """Rows of one unit that repeat an image, and the ids of the pairs that are kept."""

    row: np.ndarray  # int64 [n]
    kept_id: np.ndarray  # uint64 [n, 2]


class DropExactDuplicates(beam.PTransform):
    """Keeps one pair of all that have the same image bytes.

    Equal sample ids imply equal images. The pair with the smallest sample id is kept;
    of equal ids, the first by path of the unit and row. Only droppable pairs take part.
    """

    def __init__(self, run: RunFolder, is_on: bool) -> None:
        super().__init__()
        self._run = run
        self._is_on = is_on

    def expand(self, decisions: beam.PCollection[UnitDecisions]) -> beam.PCollection:
        if not self._is_on:
            return decisions
        repeats = (
            decisions
            | "Spread by image hash" >> beam.FlatMap(spread_identities, self._run)
            | "Group by image hash" >> beam.GroupByKey()
            | "Find repeats" >> beam.FlatMapTuple(find_repeats)
        )
        joined = join_by_unit(decisions, repeats, "repeats")
        return joined | "Drop repeats" >> beam.MapTuple(drop_repeats)


def spread_identities(
    decisions: UnitDecisions, run: RunFolder
) -> Iterator[tuple[int, Identities]]:
    """Yields (partition, identities) of the droppable pairs of a unit."""
    rows = decisions.droppable_rows
    columns = ("image_hash", "sample_id")
    table = read_rows(run.pairs(decisions.unit.source), decisions, rows, *columns)
    image_hash = to_words(table["image_hash"])
    sample_id = to_words(table["sample_id"])
    partition = (image_hash[:, 1] % N_PARTITIONS).astype(np.int64)
    for key in np.unique(partition).tolist():
        mine = partition == key
        yield (
            key,
            Identities(
                unit_name=decisions.unit.name,
                uri=decisions.unit.uri,
                row=rows[mine],
                image_hash=image_hash[mine],
                sample_id=sample_id[mine],
            ),
        )


def find_repeats(
    partition: int, blocks: Iterable[Identities]
) -> Iterator[tuple[str, Repeats]]:
    """Yields (unit name, repeats) of the pairs that are not kept."""
    del partition
    blocks = sorted(blocks, key=lambda block: block.uri)
    unit = np.repeat(np.arange(len(blocks)), [len(block.row) for block in blocks])
    row = np.concatenate([block.row for block in blocks])
    image_hash = np.concatenate([block.image_hash for block in blocks])
    sample_id = np.concatenate([block.sample_id for block in blocks])

    # lexsort takes its last key first.
    order = np.lexsort((row, unit, *sample_id.T[::-1], *image_hash.T[::-1]))
    image_hash, sample_id = image_hash[order], sample_id[order]
    is_repeat = np.zeros(len(order), dtype=bool)
    is_repeat[1:] = (image_hash[1:] == image_hash[:-1]).all(axis=1)
    kept_id = sample_id[~is_repeat][np.cumsum(~is_repeat) - 1]

    repeats = np.flatnonzero(is_repeat)
    repeats = repeats[np.argsort(unit[order[repeats]], kind="stable")]
    places, starts = np.unique(unit[order[repeats]], return_index=True)
    for place, mine in zip(places, np.split(repeats, starts[1:]), strict=False):
        yield blocks[place].unit_name, Repeats(row[order[mine]], kept_id[mine])


def group_bytes(n_pairs: float) -> float:
    """Peak memory of one group of a pool of `n_pairs`."""
    return _PEAK_BYTES * (n_pairs / N_PARTITIONS)


def shuffle_bytes(n_pairs: float, n_repeats: float) -> float:
    """Bytes of identities and repeats that cross the shuffles, without decisions."""
    return _IDENTITY_BYTES * n_pairs + _REPEAT_BYTES * n_repeats


def drop_repeats(decisions: UnitDecisions, found: Iterable[Repeats]) -> UnitDecisions:
    """Drops the repeats of one unit; the detail is the sample id of the pair kept."""
    for repeats in found:
        details = [to_hex(words) for words in repeats.kept_id]
        reason = DropReason.EXACT_DUPLICATE
        decisions = decisions.drop(repeats.row, reason, detail=details)
    return decisions
