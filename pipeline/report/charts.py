"""Coordinates of bars, ticks and lines in the charts of the page.

In: counts. Out: coordinates in units of the SVG, rounded to keep the page small.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.cards import format_number
from pipeline.report.histograms import Histogram

_WIDTH = 400.0
_HISTOGRAM_PX = 120.0  # height of the highest column; its foot is at 130
_HISTOGRAM_FOOT = 130.0
_LENGTHS_PX = 70.0
_LENGTHS_FOOT = 80.0
_RIGHT_PART = 0.6  # lines beyond it have their label on the left
_MIN_PX = 1.0  # of a column that is not empty, to be visible

Drawing = dict[str, Any]


def draw_histogram(histogram: Histogram) -> Drawing:
    """Lays out a histogram for the template."""
    edges, counts = histogram.edges, histogram.counts
    n_bins = len(edges) - 1
    rows = [
        (
            format_number(edges[i]),
            format_number(edges[i + 1]),
            *(row[i] for row in counts),
        )
        for i in range(n_bins)
        if any(row[i] for row in counts)
    ]
    return {
        "title": histogram.title,
        "bars": list(_stack_bars(histogram)),
        "ticks": _ticks(edges),
        "lines": [
            _line(line.label, line.value, line.position) for line in histogram.lines
        ],
        "n_missing": histogram.n_missing,
        "rows": rows,
    }


def _stack_bars(histogram: Histogram) -> Iterator[Drawing]:
    width = _WIDTH / (len(histogram.edges) - 1)
    for column, counts in enumerate(zip(*histogram.counts, strict=True)):
        foot = _HISTOGRAM_FOOT
        for group, n in enumerate(counts):
            if n:
                height = max(_MIN_PX, _HISTOGRAM_PX * n / histogram.highest)
                foot -= height
                yield _bar(column * width, foot, width, height) | {"group": group}


def _bar(x: float, y: float, width: float, height: float) -> Drawing:
    return {
        "x": round(x + 0.4, 1),
        "y": round(y, 1),
        "width": round(width - 0.8, 1),
        "height": round(height, 1),
    }


def _ticks(edges: Sequence[float]) -> list[Drawing]:
    middle = len(edges) // 2
    positions = ((0, "start"), (middle, "middle"), (len(edges) - 1, "end"))
    return [
        {
            "x": round(_WIDTH * i / (len(edges) - 1), 1),
            "text": format_number(float(f"{edges[i]:.2g}")),
            "anchor": anchor,
        }
        for i, anchor in positions
    ]


def _line(label: str, value: float, position: float) -> Drawing:
    x, is_right = _WIDTH * position, position > _RIGHT_PART
    return {
        "label": label,
        "shown": format_number(value),
        "x": round(x, 1),
        "text_x": round(x - 4 if is_right else x + 4, 1),
        "anchor": "end" if is_right else "start",
    }


def draw_lengths(counts: Sequence[int]) -> Drawing:
    """Lays out counts of texts by number of words; the last column has longer ones."""
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


def count_by_outcome(counts: Mapping[str, Any]) -> dict[str, int]:
    """Returns outcome to count of a ledger or a part of it, in the order of steps."""
    return {
        "unreadable": counts["unreadable"],
        **counts["dropped"],
        "kept": counts["kept"],
    }
