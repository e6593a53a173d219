"""Histograms of measures, with what became of the pairs and the thresholds.

In: a measure over sampled pairs. Out: bins and numbers, ready to be drawn.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pipeline.report.measures import Measure

N_BINS = 40
_TAIL = 0.002  # share of the values at either end that may fall into the last bin

GROUPS = ("kept", "dropped here", "dropped by another step")


@dataclasses.dataclass(frozen=True)
class Line:
    """A threshold, and where it stands from the left: in [0, 1]."""

    label: str
    value: float
    place: float


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of one measure by group; the ends take what lies beyond them."""

    name: str
    title: str
    edges: tuple[float, ...]  # [bins + 1]
    counts: tuple[tuple[int, ...], ...]  # [groups, bins]
    lines: tuple[Line, ...]
    n_missing: int

    @property
    def highest(self) -> int:
        """Of the stacked columns, at least 1."""
        return max(1, *map(sum, zip(*self.counts, strict=True)))


def histogram(
    measure: Measure, group: np.ndarray, thresholds: Sequence[tuple[str, float]]
) -> Histogram:
    """Counts `measure` by `group`, a position in GROUPS of every pair."""
    is_there = np.isfinite(measure.values)
    values, group = measure.values[is_there], group[is_there]
    edges = _edges(measure, values, [value for _, value in thresholds])
    inside = values.clip(edges[0], edges[-1])
    counts = [np.histogram(inside[group == g], edges)[0] for g in range(len(GROUPS))]
    return Histogram(
        name=measure.name,
        title=measure.title,
        edges=tuple(edges.tolist()),
        counts=tuple(tuple(row.tolist()) for row in counts),
        lines=tuple(
            Line(label, value, _place(measure, edges, value))
            for label, value in thresholds
        ),
        n_missing=int((~is_there).sum()),
    )


def _edges(
    measure: Measure, values: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
    """A threshold of whole numbers lies on an edge, so that it parts two columns."""
    ends = np.quantile(values, [_TAIL, 1 - _TAIL]).tolist()
    low, high = min(ends + list(thresholds)), max(ends + list(thresholds))
    if measure.is_ratio:
        low, high = max(low, 1e-9), max(high, low * 1.1)
        return np.geomspace(low * 0.98, high * 1.02, N_BINS + 1)
    if measure.is_whole:
        step = max(1, math.ceil((high - low + 1) / N_BINS))
        return np.arange(math.floor(low), math.floor(high) + step + 1, step).astype(
            float
        )
    margin = 0.02 * (high - low) or 0.01
    most = 1.0 if high <= 1 else np.inf  # of cosines and probabilities
    return np.linspace(low - margin, min(high + margin, most), N_BINS + 1)


def _place(measure: Measure, edges: np.ndarray, value: float) -> float:
    scale = math.log if measure.is_ratio else float
    low, high = scale(edges[0]), scale(edges[-1])
    return (scale(max(value, edges[0])) - low) / (high - low)
