"""Places of bars, ticks and lines in the drawings of the page.

In: counts. Out: coordinates in the units of the SVG, rounded, to keep the page small.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.cards import number
from pipeline.report.histograms import Histogram

_WIDTH = 400.0
_HISTOGRAM_PX = 120.0  # height of the highest column, whose foot is at 130
_HISTOGRAM_FOOT = 130.0
_LENGTHS_PX = 70.0
_LENGTHS_FOOT = 80.0
_RIGHT_PART = 0.6  # labels of lines beyond it stand on their left
_MIN_PX = 1.0  # a column that is not empty is seen

Drawn = dict[str, Any]


def drawn_histogram(histogram: Histogram) -> Drawn:
    """A histogram as the template draws it."""
    edges, counts = histogram.edges, histogram.counts
    n_bins = len(edges) - 1
    rows = [
        (number(edges[i]), number(edges[i + 1]), *(row[i] for row in counts))
        for i in range(n_bins)
        if any(row[i] for row in counts)
    ]
    return {
        "title": histogram.title,
        "bars": list(_stacked(histogram)),
        "ticks": _ticks(edges),
        "lines": [
            _line(line.label, line.value, line.place) for line in histogram.lines
        ],
        "n_missing": histogram.n_missing,
        "rows": rows,
    }


def _stacked(histogram: Histogram) -> Iterator[Drawn]:
    width = _WIDTH / (len(histogram.edges) - 1)
    for column, counts in enumerate(zip(*histogram.counts, strict=True)):
        foot = _HISTOGRAM_FOOT
        for group, n in enumerate(counts):
            if n:
                height = max(_MIN_PX, _HISTOGRAM_PX * n / histogram.highest)
                foot -= height
                yield _bar(column * width, foot, width, height) | {"group": group}


def _bar(x: float, y: float, width: float, height: float) -> Drawn:
    return {
        "x": round(x + 0.4, 1),
        "y": round(y, 1),
        "width": round(width - 0.8, 1),
        "height": round(height, 1),
    }


def _ticks(edges: Sequence[float]) -> list[Drawn]:
    middle = len(edges) // 2
    places = ((0, "start"), (middle, "middle"), (len(edges) - 1, "end"))
    return [
        {
            "x": round(_WIDTH * i / (len(edges) - 1), 1),
            "text": number(float(f"{edges[i]:.2g}")),
            "anchor": anchor,
        }
        for i, anchor in places
    ]


def _line(label: str, value: float, place: float) -> Drawn:
    x, is_right = _WIDTH * place, place > _RIGHT_PART
    return {
        "label": label,
        "shown": number(value),
        "x": round(x, 1),
        "text_x": round(x - 4 if is_right else x + 4, 1),
        "anchor": "end" if is_right else "start",
    }


def drawn_lengths(counts: Sequence[int]) -> Drawn:
    """Texts by their number of words; the last column takes longer ones."""
    used = [n for n, count in enumerate(counts) if count]
    n_shown = used[-1] + 1 if used else 1
    is_open = n_shown == len(counts)
    shown, highest = counts[:n_shown], max(1, *counts)
    width = _WIDTH / n_shown
    bars = [
        _bar(i * width, _LENGTHS_FOOT - height, width, height)
        for i, n in enumerate(shown)
        if n and (height := max(_MIN_PX, _LENGTHS_PX * n / highest))
    ]
    last = f"{n_shown - 1}{' or more' if is_open else ''} words"
    rows = [(str(i), f"{n:,}") for i, n in enumerate(shown) if n]
    return {"bars": bars, "last": last, "rows": rows}


def by_outcome(counts: Mapping[str, Any]) -> dict[str, int]:
    """Outcome to count of (a part of) a ledger, in the order of the steps."""
    return {
        "unreadable": counts["unreadable"],
        **counts["dropped"],
        "kept": counts["kept"],
    }
