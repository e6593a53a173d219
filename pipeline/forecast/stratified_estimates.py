"""Shares and totals of all shards, from a stratified sample of them.

A source is a stratum, and a shard is a cluster of pairs; shards are drawn at random
without replacement. In: numbers of every sampled shard. Out: estimates with 95 %
intervals.
Sources: Cochran 1977, Sampling Techniques, 3rd edition, chapters 5 (strata), 6 (ratios)
and 9 (clusters); Korn and Graubard 1998, Survey Methodology 24, 193-201.
"""

import dataclasses
import math
from typing import Self

import numpy as np
from scipy import special

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Self:
        """Scales the interval, as to another unit; `factor` is at least 0."""
        values = (value * factor for value in dataclasses.astuple(self))
        return type(self)(*values)


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """The stratum of each of n sampled shards, and the shards of each of s strata.

    Raises:
      ValueError: if one shard of a larger stratum is sampled: it has no variance.
    """

    stratum: np.ndarray  # int [n], position in `n_shards`
    n_shards: np.ndarray  # int [s], shards of the population

    def __post_init__(self) -> None:
        for n_sampled, n_shards in zip(self._n_sampled, self.n_shards, strict=True):
            if n_sampled < min(2, n_shards):
                raise ValueError(
                    f"{n_sampled} of {n_shards} shards sampled: expected at least 2,"
                    " as fewer have no variance"
                )

    @property
    def _n_sampled(self) -> np.ndarray:
        return np.bincount(self.stratum, minlength=len(self.n_shards))

    @property
    def weights(self) -> np.ndarray:
        """Shards of the population that each sampled one represents: float64 [n]."""
        return self.n_shards[self.stratum] / self._n_sampled[self.stratum]

    @property
    def is_census(self) -> bool:
        """Whether all shards are sampled, so that nothing is estimated."""
        return bool((self._n_sampled == self.n_shards).all())

    @property
    def t(self) -> float:
        """Quantile of Student's t, over strata that are not sampled whole."""
        is_partial = self._n_sampled < self.n_shards
        freedom = (self._n_sampled - 1)[is_partial].sum()
        return float(special.stdtrit(max(freedom, 1), 1 - _TAIL))

    def variance(self, values: np.ndarray) -> float:
        """Variance of the weighted sum of `values` [n].

        Sum over strata of N^2 (1 - n/N) s^2 / n, where s^2 is the variance between
        shards and 1 - n/N the finite-population correction.
        """
        return float(
            sum(map(self._stratum_variance, self._groups(values), self.n_shards))
        )

    def _groups(self, values: np.ndarray) -> list[np.ndarray]:
        return [values[self.stratum == h] for h in range(len(self.n_shards))]

    @staticmethod
    def _stratum_variance(values: np.ndarray, n_shards: int) -> float:
        n = len(values)
        if n == n_shards:
            return 0.0
        return n_shards**2 * (1 - n / n_shards) * values.var(ddof=1) / n


def estimate_total(design: Design, values: np.ndarray) -> Interval:
    """Estimates the sum of a number over all shards.

    The lower end is at least the sum over the sample. `values` [n] are at least 0.
    """
    estimate = float(design.weights @ values)
    margin = design.t * math.sqrt(design.variance(values))
    low = max(estimate - margin, float(values.sum()))
    return Interval(estimate, min(low, estimate), estimate + margin)


def estimate_share(design: Design, parts: np.ndarray, wholes: np.ndarray) -> Interval:
    """Estimates the sum of `parts` over the sum of `wholes`.

    Both [n] count pairs, with parts <= wholes. The interval is that of Clopper and
    Pearson for the effective number of pairs: as many as would give the variance
    between shards if pairs were drawn one by one. So a share near 0 has an interval
    too, even that of a reason that no pair of the sample has.
    """
    whole = float(design.weights @ wholes)
    p = float(design.weights @ parts) / whole
    if design.is_census:
        return Interval(p, p, p)
    n = _effective_pairs(design, p, (parts - p * wholes) / whole, wholes)
    n_part = p * n
    low = special.betaincinv(n_part, n - n_part + 1, _TAIL) if p > 0 else 0.0
    high = special.betaincinv(n_part + 1, n - n_part, 1 - _TAIL) if p < 1 else 1.0
    return Interval(p, float(low), float(high))


def _effective_pairs(
    design: Design, p: float, residuals: np.ndarray, wholes: np.ndarray
) -> float:
    """The effective number of pairs.

    At most the pairs of the sample, corrected for the finite population. Student's t
    shrinks it where few shards make their variance uncertain.
    """
    fraction = wholes.sum() / (design.weights @ wholes)
    most = wholes.sum() / (1 - fraction)
    variance = design.variance(residuals)
    if variance == 0:
        return most
    normal = special.ndtri(1 - _TAIL)
    return min(p * (1 - p) / variance * (normal / design.t) ** 2, most)


def estimate_count(design: Design, parts: np.ndarray, wholes: np.ndarray) -> Interval:
    """Estimates the sum of `parts`, with the wider of two intervals at each end.

    The intervals are that of `estimate_total`, which includes how the sizes of shards
    vary, and that of `estimate_share`, which holds where few pairs or none were seen.
    """
    by_total = estimate_total(design, parts)
    by_share = estimate_share(design, parts, wholes)
    n_pairs = float(design.weights @ wholes)
    low = max(min(by_total.low, by_share.low * n_pairs), float(parts.sum()))
    high = max(by_total.high, by_share.high * n_pairs)
    return Interval(by_total.estimate, min(low, by_total.estimate), high)
