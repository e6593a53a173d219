"""Exact quantiles of the scores of a pool, in little memory.

In: float32 scores, one part of the pool at a time; NaN is no score. Out: for each group
of the pool the score from which on a share of it is kept. Scores become integers of 32
bits in the same order. A first pass over the pool counts the upper halves of the
integers and finds the half that holds the cut; a second pass counts the lower halves
within it. That is at most 65,536 counts, however large the pool is.
"""

import dataclasses
import fractions
import math
from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict

from pipeline.selection import integer_counts
from pipeline.selection.integer_counts import Counts, SumCounts

_HALF = 16  # bits
_NO_SCORE = -1  # in place of an upper half
_SIGN = np.uint32(1 << 31)
# Upper halves of cosines outside of 1/256 of zero: signs, exponents, mantissas.
_N_COSINE_HALVES = 2 * 8 * 2**7


@dataclasses.dataclass(frozen=True)
class Cut:
    """The lowest score to keep in a group, and what it means for the group.

    It is the n-th best score, where n is `keep_fraction` of all pairs, rounded up.
    Pairs without a score are counted and rank last. Scores equal to the cut are kept
    too. The cut of a group without any score is NaN.
    """

    score: float
    n_contested: int
    n_without_score: int
    n_kept: int


@dataclasses.dataclass(frozen=True)
class BucketOfCut:
    """The upper half that holds the cut of a group, found by the first pass."""

    upper_half: int
    n_below: int  # scores in this upper half that are below the cut
    n_above: int  # scores in higher upper halves
    n_contested: int
    n_without_score: int


class FindCuts(beam.PTransform):
    """Maps a collection of parts of the pool to (group, Cut).

    `read` returns the group and the scores of a part. It is called twice per part.
    """

    def __init__(
        self, keep_fraction: float, read: Callable[[Any], tuple[str, np.ndarray]]
    ) -> None:
        super().__init__()
        self._keep_fraction = keep_fraction
        self._read = read

    def expand(self, parts: beam.PCollection) -> beam.PCollection[tuple[str, Cut]]:
        group_to_bucket = AsDict(
            parts
            | "Count upper halves" >> beam.Map(count_upper_halves, self._read)
            | "Add upper halves" >> beam.CombinePerKey(SumCounts())
            | "Find upper half" >> beam.Map(_find_bucket, self._keep_fraction)
        )
        return (
            parts
            | "Count lower halves"
            >> beam.Map(count_lower_halves, self._read, group_to_bucket)
            | "Add lower halves" >> beam.CombinePerKey(SumCounts())
            | "Find cut" >> beam.Map(_with_cut, group_to_bucket)
        )


def _find_bucket(
    found: tuple[str, Counts], keep_fraction: float
) -> tuple[str, BucketOfCut]:
    group, upper = found
    return group, find_bucket(upper, keep_fraction)


def _with_cut(
    found: tuple[str, Counts], group_to_bucket: Mapping[str, BucketOfCut]
) -> tuple[str, Cut]:
    group, lower = found
    return group, find_cut(lower, group_to_bucket[group])


def count_upper_halves(
    part: Any, read: Callable[[Any], tuple[str, np.ndarray]]
) -> tuple[str, Counts]:
    """The group of a part, and the counts of its scores for the first pass."""
    group, scores = read(part)
    has_score = ~np.isnan(scores)
    halves = np.full(len(scores), _NO_SCORE)
    halves[has_score] = to_keys(scores[has_score]) >> _HALF
    return group, Counts.of(halves)


def count_lower_halves(
    part: Any,
    read: Callable[[Any], tuple[str, np.ndarray]],
    group_to_bucket: Mapping[str, BucketOfCut],
) -> tuple[str, Counts]:
    """The group of a part, and the counts of its scores for the second pass."""
    group, scores = read(part)
    keys = to_keys(scores[~np.isnan(scores)])
    inside = keys[keys >> _HALF == group_to_bucket[group].upper_half]
    return group, Counts.of(inside & (1 << _HALF) - 1)


def to_keys(scores: np.ndarray) -> np.ndarray:
    """float32 numbers as int64 in [0, 2^32) of the same order; both zeros are equal."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.int64)


def to_score(key: int) -> float:
    """The float32 number that has this key."""
    bits = np.uint32(key)
    bits = bits & ~_SIGN if bits & _SIGN else ~bits
    return float(bits.view(np.float32))


def find_bucket(upper: Counts, keep_fraction: float) -> BucketOfCut:
    """Finds the upper half of the n-th best score.

    The fraction is taken as it is written: 0.55 of 20 is 11, although the float nearest
    to 0.55 is a little larger.
    """
    is_score = upper.number != _NO_SCORE
    halves, counts = upper.number[is_score], upper.count[is_score]
    n_contested, n_scores = int(upper.count.sum()), int(counts.sum())
    n_without = n_contested - n_scores
    if not n_scores:
        return BucketOfCut(_NO_SCORE, 0, 0, n_contested, n_without)
    n_wanted = math.ceil(fractions.Fraction(str(keep_fraction)) * n_contested)
    n_worse = n_scores - min(n_wanted, n_scores)
    last = np.cumsum(counts)
    i = int(np.searchsorted(last, n_worse, side="right"))
    n_below = n_worse - int(last[i] - counts[i])
    n_above = n_scores - int(last[i])
    return BucketOfCut(int(halves[i]), n_below, n_above, n_contested, n_without)


def find_cut(lower: Counts, bucket: BucketOfCut) -> Cut:
    """Finds the n-th best score among those in its upper half."""
    n_contested, n_without = bucket.n_contested, bucket.n_without_score
    if bucket.upper_half == _NO_SCORE:
        return Cut(math.nan, n_contested, n_without, 0)
    i = int(np.searchsorted(np.cumsum(lower.count), bucket.n_below, side="right"))
    score = to_score(bucket.upper_half << _HALF | int(lower.number[i]))
    n_kept = bucket.n_above + int(lower.count[i:].sum())
    return Cut(score, n_contested, n_without, n_kept)


def worker_bytes(n_scores: float) -> float:
    """Peak memory of counting the scores of one group."""
    return integer_counts.PEAK_BYTES * min(n_scores, 1 << _HALF)


def shuffle_bytes(n_scores: float) -> float:
    """Bytes that one part of the pool sends: counts of upper halves of its cosines.

    Those of lower halves are few, and not counted.
    """
    return integer_counts.BYTES * min(n_scores, _N_COSINE_HALVES)


def to_json(group_to_cut: Mapping[str, Cut]) -> dict[str, dict]:
    """The cuts by group as plain JSON values; NaN becomes None."""
    return {
        group: dataclasses.asdict(cut)
        | {"score": None if math.isnan(cut.score) else cut.score}
        for group, cut in sorted(group_to_cut.items())
    }
