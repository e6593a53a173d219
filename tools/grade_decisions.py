"""Compares the decisions of a run on a drawn crawl with the planted truth.

In: the truth table of `pipeline.scenes` and the outcome of every pair. Out: precision
and recall of each reason to drop a pair.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.engine.run_folder import RunFolder
from pipeline.records import KEPT, UNREADABLE, DropReason

PairKey = tuple[str, str]  # shard without folder and suffix, key


@dataclasses.dataclass(frozen=True)
class Grade:
    """Counts of pairs with one outcome, against the planted truth."""

    n_planted: int
    n_decided: int
    n_right: int

    @property
    def precision(self) -> float:
        return self.n_right / self.n_decided if self.n_decided else 1.0

    @property
    def recall(self) -> float:
        return self.n_right / self.n_planted if self.n_planted else 1.0


def read_outcomes(run: RunFolder) -> dict[PairKey, str]:
    """Returns the outcome of every pair of a run."""
    outcomes: dict[PairKey, str] = {}
    for lot in run.lots:
        pairs = run.pairs(lot.source).read(lot.name, ["key", "shard"])
        decided = run.decisions.read(lot.name, ["outcome"])["outcome"].to_pylist()
        stems = [
            shard.uri.rsplit("/", 1)[-1].removesuffix(".tar") for shard in lot.shards
        ]
        shards = [stems[number] for number in pairs["shard"].to_pylist()]
        keys = zip(shards, pairs["key"].to_pylist(), strict=True)
        outcomes |= dict(zip(keys, decided, strict=True))
    return outcomes


def grade(truth: pa.Table, key_to_outcome: Mapping[PairKey, str]) -> dict[str, Grade]:
    """Grades each outcome: every `DropReason`, "unreadable" and "kept".

    The truth does not say which of several equal images stays, since ids decide that.
    In a group of n equal images, n - 1 are expected to go, whichever they are.
    """
    rows = truth.to_pylist()
    expected = {(row["shard"], row["key"]): row["expected"] for row in rows}
    for group in _equal_images(rows):
        _expect_what_stays(group, expected, key_to_outcome)
    planted = collections.Counter(expected.values())
    decided = collections.Counter(key_to_outcome[key] for key in expected)
    right = collections.Counter(
        outcome for key, outcome in expected.items() if key_to_outcome[key] == outcome
    )
    return {
        outcome: Grade(planted[outcome], decided[outcome], right[outcome])
        for outcome in (*map(str, DropReason), UNREADABLE, KEPT)
    }


def _equal_images(rows: Sequence[dict]) -> list[list[PairKey]]:
    """Returns groups of an original and its exact duplicates."""
    key_to_shard = {row["key"]: row["shard"] for row in rows}
    groups = collections.defaultdict(list)
    for row in rows:
        if row["expected"] == DropReason.EXACT_DUPLICATE:
            original = row["duplicate_of"]
            groups[key_to_shard[original], original].append((row["shard"], row["key"]))
    return [[original, *copies] for original, copies in groups.items()]


def _expect_what_stays(
    group: Sequence[PairKey],
    expected: dict[PairKey, str],
    key_to_outcome: Mapping[PairKey, str],
) -> None:
    """Corrects `expected` for the one image of the group that stayed."""
    duplicate = str(DropReason.EXACT_DUPLICATE)
    staying = [key for key in group if key_to_outcome[key] != duplicate]
    stays = staying[0] if staying else group[0]
    for key in group:
        expected[key] = KEPT if key == stays else duplicate
