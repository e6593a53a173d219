"""Histograms of measures by the outcome of the pairs, with the thresholds.

In: a measure over sampled pairs. Out: bins and counts, ready to be drawn.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from pipeline.report.measures import Measure

N_BINS = 40
_TAIL = 0.002  # share of the values at either end that the last bin may take in

GROUPS = ("kept", "dropped here", "dropped by another step")


@dataclasses.dataclass(frozen=True)
class Line:
    """A threshold and its position on the axis, from 0 (left) to 1 (right)."""

    label: str
    value: float
    position: float


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts of one measure by group; the end bins include all values beyond them."""

    name: str
    title: str
    edges: tuple[float, ...]  # [bins + 1]
    counts: tuple[tuple[int, ...], ...]  # [groups, bins]
    lines: tuple[Line, ...]
    n_missing: int

    @property
    def highest(self) -> int:
        """The height of the highest stacked column, at least 1."""
        return max(1, *map(sum, zip(*self.counts, strict=True)))


def count_values(
    measure: Measure, group: np.ndarray, thresholds: Sequence[tuple[str, float]]
) -> Histogram:
    """Counts the values of a measure in bins.

    Args:
      measure: One value per pair; NaN is counted as missing.
      group: Position in GROUPS of each pair: int [n].
      thresholds: Labels and values to mark.
    """
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
            Line(label, value, _position(measure, edges, value))
            for label, value in thresholds
        ),
        n_missing=int((~is_there).sum()),
    )


def _edges(
    measure: Measure, values: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
    """Edges of the bins; thresholds of whole numbers fall on edges."""
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


def _position(measure: Measure, edges: np.ndarray, value: float) -> float:
    scale = math.log if measure.is_ratio else float
    low, high = scale(edges[0]), scale(edges[-1])
    return (scale(max(value, edges[0])) - low) / (high - low)
