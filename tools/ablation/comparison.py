"""Differences between arms, paired by seed, with Student's intervals.

In: figures by arm and seed. Out: a difference per effect and measure.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from tools.ablation.arms import EFFECTS, Effect, Expected

CONFIDENCE = 0.95

# Arm to seed to figures.
Results = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference of two arms in one measure, over the seeds that both have."""

    effect: Effect
    measure: str
    mean: float
    low: float
    high: float
    n_seeds: int

    @property
    def expected(self) -> Expected:
        """The direction that was written down before running."""
        return self.effect.measures[self.measure]

    @property
    def verdict(self) -> str:
        """Whether the interval agrees with the expected direction."""
        return compare_with_expected(self.expected, self.low, self.high)


def compare_with_expected(expected: Expected, low: float, high: float) -> str:
    """Says whether an interval excludes zero, and on which side."""
    if low <= 0 <= high:
        return "no difference found" if expected is Expected.EQUAL else "null"
    if expected is Expected.EQUAL:
        return "opposite"
    is_met = (low > 0) == (expected is Expected.HIGHER)
    return "as the paper" if is_met else "opposite"


def interval_of_mean(differences: Sequence[float]) -> tuple[float, float]:
    """Student's interval of their mean at `CONFIDENCE`; infinite for one difference."""
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        return -math.inf, math.inf
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return mean - half, mean + half


def compare(results: Results, effect: Effect, measure: str) -> Difference:
    """Compares the arms of an effect in one measure.

    Raises:
      ValueError: if the arms have no seed in common.
    """
    arm, against = results[effect.arm], results[effect.against]
    seeds = sorted(arm.keys() & against.keys())
    if not seeds:
        raise ValueError(f"{effect.arm}, {effect.against}: no seed that both have")
    found = [arm[seed][measure] - against[seed][measure] for seed in seeds]
    mean = float(np.mean(found))
    return Difference(effect, measure, mean, *interval_of_mean(found), len(seeds))


def compare_all(results: Results) -> list[Difference]:
    """Compares the arms of all effects in all their measures.

    Raises:
      ValueError: if an arm is missing.
    """
    return [
        compare(results, effect, measure)
        for effect in EFFECTS
        for measure in effect.measures
    ]
