"""Estimates against worked numbers and against populations drawn by chance."""

import numpy as np
import pytest

from pipeline.forecast import stratified_estimates
from pipeline.forecast.stratified_estimates import Design, Interval

TWO_STRATA = Design(np.array([0, 0, 0, 1, 1]), np.array([6, 4]))


def test_the_variance_of_a_worked_example():
    # 6^2 (1 - 3/6) 4 / 3 = 24 of variance 4; 4^2 (1 - 2/4) 2 / 2 = 8 of variance 2.
    values = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    assert TWO_STRATA.variance(values) == pytest.approx(24 + 8)
    found = stratified_estimates.estimate_total(TWO_STRATA, values)
    assert found.estimate == pytest.approx(6 * 3 + 4 * 8)
    # t of 3 degrees of freedom at 0.975 is 3.1824.
    assert found.high == pytest.approx(50 + 3.1824 * 32**0.5, rel=1e-4)


def test_a_total_is_at_least_what_was_seen():
    found = stratified_estimates.estimate_total(
        TWO_STRATA, np.array([0.0, 0.0, 90.0, 0.0, 0.0])
    )
    assert found.low == 90


def test_a_sample_of_all_shards_has_no_interval():
    design = Design(np.array([0, 0, 1]), np.array([2, 1]))
    parts, wholes = np.array([3, 0, 4]), np.array([5, 6, 9])
    assert stratified_estimates.estimate_share(design, parts, wholes) == Interval(
        0.35, 0.35, 0.35
    )
    assert stratified_estimates.estimate_count(design, parts, wholes) == Interval(
        7, 7, 7
    )


def test_an_outcome_without_a_sampled_pair_has_an_interval():
    nothing, wholes = np.zeros(5), np.full(5, 100)
    share = stratified_estimates.estimate_share(TWO_STRATA, nothing, wholes)
    # Clopper-Pearson of 0 in 500 of 1,000: the sample counts twice.
    assert share == Interval(0, 0, pytest.approx(1 - 0.025 ** (1 / 1000)))
    count = stratified_estimates.estimate_count(TWO_STRATA, nothing, wholes)
    assert (count.low, count.high) == (0, pytest.approx(1000 * share.high))


def test_one_shard_of_several_is_refused():
    with pytest.raises(ValueError, match="1 of 3 shards sampled: expected at least 2"):
        Design(np.array([0, 0, 1]), np.array([5, 3]))


def populations(rng: np.random.Generator, mean: float) -> tuple[np.ndarray, ...]:
    """Pairs of 60 and 200 shards, and how many of them have a reason.

    Shares vary from shard to shard by as much as they would in a crawl by site.
    """
    stratum = np.repeat([0, 1], [60, 200])
    wholes = rng.integers(80, 121, len(stratum))
    means = np.where(stratum == 0, mean, mean / 2)
    return stratum, wholes, rng.binomial(wholes, rng.beta(10 * means, 10 * (1 - means)))


def drawn(rng: np.random.Generator, stratum: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate(
        [rng.permutation(np.flatnonzero(stratum == h))[:n] for h in (0, 1)]
    )


@pytest.mark.parametrize(("mean", "n_sampled"), [(0.4, 8), (0.4, 40), (0.03, 20)])
def test_intervals_cover_the_truth_as_often_as_stated(mean, n_sampled):
    rng = np.random.default_rng(0)
    stratum, wholes, parts = populations(rng, mean)
    truths = (parts.sum() / wholes.sum(), parts.sum(), parts.sum())
    covered = []
    for _ in range(200):
        rows = drawn(rng, stratum, n_sampled)
        design = Design(stratum[rows], np.array([60, 200]))
        found = (
            stratified_estimates.estimate_share(design, parts[rows], wholes[rows]),
            stratified_estimates.estimate_count(design, parts[rows], wholes[rows]),
            stratified_estimates.estimate_total(design, parts[rows]),
        )
        covered.append(
            [i.low <= t <= i.high for i, t in zip(found, truths, strict=True)]
        )
    share, count, total = np.mean(covered, axis=0)
    assert 0.92 <= share <= 0.99
    assert count >= 0.93
    assert 0.89 <= total <= 0.98  # skewed where the reason is rare


def test_a_population_without_variation_between_shards_has_no_interval_of_its_total():
    found = stratified_estimates.estimate_total(TWO_STRATA, np.full(5, 7.0))
    assert found == Interval(70, 70, 70)


def test_the_order_of_shards_does_not_matter():
    parts, wholes = np.array([1, 2, 3, 4, 5]), np.array([9, 8, 7, 6, 9])
    order = np.array([3, 1, 4, 0, 2])
    design = Design(TWO_STRATA.stratum[order], TWO_STRATA.n_shards)
    expected = stratified_estimates.estimate_share(TWO_STRATA, parts, wholes)
    found = stratified_estimates.estimate_share(design, parts[order], wholes[order])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
