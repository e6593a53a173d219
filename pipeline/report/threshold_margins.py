"""Distances of pairs from a threshold.

In: steps over sampled pairs. Out: the thresholds of a measure, and the nearest pairs on
either side of one.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline import records
from pipeline.report.pair_facts import PairFacts
from pipeline.report.select_steps import Step


def label_thresholds(
    step: Step, sample: Sequence[PairFacts]
) -> list[tuple[str, float]]:
    """Returns labels and values of thresholds, in units of the step's measure."""
    if step.kind == "fraction":
        cut = _find_cut(step, sample)
        return [] if np.isnan(cut) else [(f"cut of {step.knobs[0].value}", cut)]
    if step.kind == "language":
        return [(knob.label, knob.value) for knob in step.knobs[:2] if knob.value > 0]
    return [(knob.label, knob.value) for knob in step.knobs]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The values that a step compares, one per pair; NaN without a threshold."""

    value: np.ndarray  # float64 [n]
    bound: np.ndarray  # float64 [n]

    @property
    def distance(self) -> np.ndarray:
        """Distance of each value from its bound: float64 [n]."""
        return np.abs(self.value - self.bound)


def compare_with_bounds(step: Step, sample: Sequence[PairFacts]) -> Comparison:
    """Returns the values and bounds of a step, one per pair of the sample."""
    columns, knobs = step.columns, step.knobs
    nothing = np.full(len(sample), np.nan)
    if step.kind in ("least", "most"):
        return Comparison(columns["value"], np.full(len(sample), knobs[0].value))
    if step.kind == "fraction":
        return Comparison(
            columns["value"], np.full(len(sample), _find_cut(step, sample))
        )
    if step.kind == "language":
        wanted = knobs[0].value if knobs[0].value > 0 else np.nan
        bound = np.where(columns["is_wanted"] == 1, wanted, knobs[1].value)
        return Comparison(
            columns["probability"], np.where(columns["short"] == 0, bound, np.nan)
        )
    return Comparison(nothing, nothing)


def find_nearest(
    step: Step, sample: Sequence[PairFacts], outcome: str, n: int
) -> list[int]:
    """Returns positions of the `n` pairs of an outcome nearest to the threshold."""
    distance = compare_with_bounds(step, sample).distance
    rows = [i for i, one in enumerate(sample) if one.decision.outcome == outcome]
    rows = [i for i in rows if np.isfinite(distance[i])]
    return sorted(rows, key=lambda i: float(distance[i]))[:n]


def find_barely_kept(step: Step, sample: Sequence[PairFacts], n: int) -> list[int]:
    """Returns positions of the kept pairs nearest to the threshold of a step."""
    return find_nearest(step, sample, records.KEPT, n)


def _find_cut(step: Step, sample: Iterable[PairFacts]) -> float:
    """The threshold that the run recorded with the pairs it dropped, or NaN."""
    recorded = (
        one.decision.threshold
        for one in sample
        if one.decision.outcome == step.reason and one.decision.threshold is not None
    )
    return next(recorded, float("nan"))
