"""How far pairs are from a threshold.

In: steps over sampled pairs. Out: the thresholds of a measure, and the pairs that lie
nearest to one on either side.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline import records
from pipeline.report.pair_facts import Examined
from pipeline.report.select_steps import Step


def thresholds(step: Step, sample: Sequence[Examined]) -> list[tuple[str, float]]:
    """Labels and values, in units of the step's measure."""
    if step.kind == "fraction":
        cut = _cut(step, sample)
        return [] if np.isnan(cut) else [(f"cut of {step.knobs[0].value}", cut)]
    if step.kind == "language":
        return [(knob.label, knob.value) for knob in step.knobs[:2] if knob.value > 0]
    return [(knob.label, knob.value) for knob in step.knobs]


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """What a step compares of every pair: NaN where no threshold speaks of it."""

    value: np.ndarray  # float64 [n]
    bound: np.ndarray  # float64 [n]

    @property
    def distance(self) -> np.ndarray:
        return np.abs(self.value - self.bound)


def compared(step: Step, sample: Sequence[Examined]) -> Compared:
    """Values and bounds of a step."""
    columns, knobs = step.columns, step.knobs
    nothing = np.full(len(sample), np.nan)
    if step.kind in ("least", "most"):
        return Compared(columns["value"], np.full(len(sample), knobs[0].value))
    if step.kind == "fraction":
        return Compared(columns["value"], np.full(len(sample), _cut(step, sample)))
    if step.kind == "language":
        wanted = knobs[0].value if knobs[0].value > 0 else np.nan
        bound = np.where(columns["is_wanted"] == 1, wanted, knobs[1].value)
        return Compared(
            columns["probability"], np.where(columns["short"] == 0, bound, np.nan)
        )
    return Compared(nothing, nothing)


def nearest(step: Step, sample: Sequence[Examined], outcome: str, n: int) -> list[int]:
    """Positions of the `n` pairs of an outcome that are nearest to the threshold."""
    distance = compared(step, sample).distance
    rows = [i for i, one in enumerate(sample) if one.decision.outcome == outcome]
    rows = [i for i in rows if np.isfinite(distance[i])]
    return sorted(rows, key=lambda i: float(distance[i]))[:n]


def barely_kept(step: Step, sample: Sequence[Examined], n: int) -> list[int]:
    """Positions of the kept pairs that were nearest to being dropped by a step."""
    return nearest(step, sample, records.KEPT, n)


def _cut(step: Step, sample: Iterable[Examined]) -> float:
    """The threshold that the run recorded with the pairs it dropped; NaN if none."""
    recorded = (
        one.decision.threshold
        for one in sample
        if one.decision.outcome == step.reason and one.decision.threshold is not None
    )
    return next(recorded, float("nan"))
