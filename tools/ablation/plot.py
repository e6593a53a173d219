"""The differences between arms as an SVG.

In: differences. Out: a plot with one line per effect and measure.
"""

import html
from collections.abc import Sequence

from tools.ablation.comparison import Difference

VERDICT_TO_COLOR = {
    "as the paper": "#1a7f37",
    "no difference found": "#0969da",
    "null": "#6e7781",
    "opposite": "#cf222e",
}
_LABEL_PX, _PLOT_PX, _ROW_PX, _MARGIN_PX = 260, 440, 22, 40


def svg(differences: Sequence[Difference]) -> str:
    """Draws differences in percentage points, with 95 % intervals.

    Measures must be shares.

    Raises:
      ValueError: if a difference has one seed, as its interval is then infinite.
    """
    for one in differences:
        if one.n_seeds < 2:
            arms = f"{one.effect.arm} and {one.effect.against}"
            raise ValueError(f"{arms}: {one.n_seeds} seed, expected 2 or more to plot")
    bounds = [100 * x for one in differences for x in (one.low, one.high)]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    scale = (_PLOT_PX - 40) / (high - low or 1)

    def x_px(value: float) -> float:
        return _LABEL_PX + 20 + (value - low) * scale

    height = _ROW_PX * len(differences) + 2 * _MARGIN_PX
    width = _LABEL_PX + _PLOT_PX
    bottom = height - _MARGIN_PX
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _line(x_px(0), _MARGIN_PX, x_px(0), bottom, "#24292f"),
        *(_text(x_px(v), bottom + 16, f"{v:+.1f}", "middle") for v in (low, high)),
        _text(x_px(0), bottom + 16, "0", "middle"),
        _text(width / 2, height - 6, "percentage points, 95 % interval", "middle"),
        *_legend(),
    ]
    for row, one in enumerate(differences):
        y_px = _MARGIN_PX + (row + 0.5) * _ROW_PX
        parts += _row(
            one, y_px, *(x_px(100 * x) for x in (one.low, one.mean, one.high))
        )
    return "\n".join([*parts, "</svg>\n"])


def _row(
    one: Difference, y_px: float, low_px: float, mean_px: float, high_px: float
) -> list[str]:
    color = VERDICT_TO_COLOR[one.verdict]
    label = f"({one.effect.key}) {one.measure}"
    return [
        _text(_LABEL_PX - 4, y_px + 4, label, "end"),
        _line(low_px, y_px, high_px, y_px, color),
        f'<circle cx="{mean_px:.1f}" cy="{y_px:.1f}" r="4" fill="{color}"/>',
    ]


def _legend() -> list[str]:
    step = (_LABEL_PX + _PLOT_PX) / len(VERDICT_TO_COLOR)
    return [
        f'<text x="{10 + i * step:.1f}" y="20" fill="{color}">{name}</text>'
        for i, (name, color) in enumerate(VERDICT_TO_COLOR.items())
    ]


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="{color}" stroke-width="2"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    words = html.escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
