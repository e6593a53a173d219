import math
from fractions import Fraction

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection import quantiles
from pipeline.selection.integer_counts import Counts, SumCounts, sum_counts
from pipeline.selection.quantiles import Cut

NAN = math.nan
EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4028235e38, math.inf, -math.inf, NAN]
SCORES = st.one_of(
    st.floats(-1, 1, width=32),
    st.sampled_from([0.25, 0.25000003, 0.24999999, 0.5, -0.5]),  # ties, neighbors
    st.sampled_from(np.array(EDGES, np.float32).tolist()),
)


def read(part: tuple[str, list[float]]) -> tuple[str, np.ndarray]:
    group, scores = part
    return group, np.array(scores, np.float32)


def cut_of(parts: list[list[float]], keep_fraction: float) -> Cut:
    """The cut of one group, as the transform finds it."""
    named = [("pool", part) for part in parts]
    uppers = [quantiles.count_upper_halves(part, read)[1] for part in named]
    bucket = quantiles.find_bucket(sum_counts(uppers), keep_fraction)
    lowers = [
        quantiles.count_lower_halves(part, read, {"pool": bucket})[1] for part in named
    ]
    return quantiles.find_cut(sum_counts(lowers), bucket)


def plain_cut(scores: np.ndarray, keep_fraction: float) -> float:
    measured = scores[~np.isnan(scores)]
    if not len(measured):
        return NAN
    n_keep = math.ceil(Fraction(str(keep_fraction)) * len(scores))
    n_keep = min(n_keep, len(measured))
    return float(np.partition(measured, -n_keep)[-n_keep])


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    parts=st.lists(st.lists(SCORES, max_size=30), min_size=1, max_size=4),
    percent=st.integers(1, 100),
)
def test_the_cut_is_that_of_a_partition_of_all_scores(parts, percent):
    scores = np.array([score for part in parts for score in part], np.float32)
    found = cut_of(parts, percent / 100)
    expected = plain_cut(scores, percent / 100)
    np.testing.assert_equal(found.score + 0.0, expected + 0.0)
    assert found.n_contested == len(scores)
    assert found.n_without_score == np.isnan(scores).sum()
    assert found.n_kept == (scores >= expected).sum()


@pytest.mark.parametrize("n", [1, 7, 100_000])
@pytest.mark.parametrize("kind", ["normal", "equal", "few values"])
def test_large_pools_have_the_cut_of_a_partition(n, kind):
    rng = np.random.default_rng(n)
    scores = {
        "normal": rng.normal(0.2, 0.05, n),
        "equal": np.full(n, 0.3),
        "few values": rng.integers(-3, 3, n) / 7,
    }[kind].astype(np.float32)
    for keep_fraction in (0.001, 0.3, 0.55, 1):
        found = cut_of(np.array_split(scores, 3), keep_fraction)
        expected = plain_cut(scores, keep_fraction)
        assert found.score == expected
        assert found.n_kept == (scores >= expected).sum()


@pytest.mark.parametrize(
    ("scores", "keep_fraction", "cut"),
    [
        ([0.125, 0.25, 0.375, 0.5], 0.5, 0.375),
        ([0.125, 0.25, 0.375], 0.5, 0.25),  # 1.5 rounds up to 2
        ([0.125, 0.25, 0.25, 0.25], 0.25, 0.25),  # all ties stay
        ([0.125, 0.25, NAN, NAN], 0.25, 0.25),  # pairs without a score count
        ([0.125, 0.25, NAN, NAN], 0.75, 0.125),
        ([i / 32 for i in range(20)], 0.55, 9 / 32),  # 0.55 * 20 > 11 in floats
        ([-0.0, 0.0], 0.5, 0.0),
    ],
)
def test_the_cut_is_the_score_of_the_last_pair_to_keep(scores, keep_fraction, cut):
    found = cut_of([scores], keep_fraction).score
    assert (found, math.copysign(1, found)) == (cut, 1)


def test_there_is_no_cut_without_scores():
    for scores in ([], [NAN]):
        found = cut_of([scores], 0.5)
        assert math.isnan(found.score)
        assert (found.n_contested, found.n_kept) == (len(scores), 0)


def test_keys_are_ordered_as_numbers_are_and_lead_back_to_them():
    numbers = np.array(EDGES[:-1], np.float32)
    numbers.sort()
    keys = quantiles.to_keys(numbers)
    assert (np.diff(keys) > 0).tolist() == (np.diff(numbers) > 0).tolist()
    assert keys.min() >= 0
    assert keys.max() < 2**32
    assert [quantiles.to_score(key) for key in keys] == numbers.tolist()


def test_every_group_has_its_own_cut():
    parts = [("a", [1, 2]), ("b", [5, NAN]), ("a", [3, 4]), ("c", [])]
    expected = [
        ("a", Cut(3, 4, 0, 2)),
        ("b", Cut(5, 2, 1, 1)),
    ]
    with beam.Pipeline(FnApiRunner()) as pipeline:
        cuts = (
            pipeline
            | beam.Create(parts)
            | quantiles.FindCuts(0.5, read)
            | beam.Filter(lambda found: not math.isnan(found[1].score))
        )
        assert_that(cuts, equal_to(expected))


# Tallies


def test_counts_add_up_to_the_same_in_any_order():
    rng = np.random.default_rng(0)
    numbers = rng.integers(-1, 50, 1000)
    combine = SumCounts()
    for n_parts in (1, 40, 1000):
        parts = np.array_split(rng.permutation(numbers), n_parts)
        accumulators = [combine.create_accumulator() for _ in range(3)]
        for i, part in enumerate(parts):
            accumulators[i % 3] = combine.add_input(
                accumulators[i % 3], Counts.of(part)
            )
        found = combine.extract_output(combine.merge_accumulators(accumulators))
        expected = np.unique(numbers, return_counts=True)
        np.testing.assert_array_equal((found.number, found.count), expected)


def test_a_tally_knows_what_does_not_occur():
    tally = Counts.of(np.array([3, 1, 3]))
    assert tally.count_of(np.array([0, 1, 2, 3, 4])).tolist() == [0, 1, 0, 2, 0]
    empty = sum_counts([])
    assert empty.count_of(np.array([0, 7])).tolist() == [0, 0]
