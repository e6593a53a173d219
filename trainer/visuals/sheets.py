"""Pictures side by side on one sheet, each with a line of text below it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from recipes.safe_text import visible

RGB = UInt8[np.ndarray, "h w 3"]

_GAP_PX = 6
_LINE_PX = 18  # of text
_FONT_PX = 12
_MAX_LABEL_CHARS = 80


class Tile(NamedTuple):
    """A picture and its label."""

    image: RGB
    label: str


def fit_to_side(image: RGB, max_side_px: int) -> RGB:
    """Enlarges or reduces a picture until its long side is `max_side_px`."""
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, method))


def make_sheet(rows: Sequence[Sequence[Tile]]) -> RGB:
    """Puts rows of tiles on white. All columns are as wide as the widest tile."""
    tiles = [tile for row in rows for tile in row]
    width = max(tile.image.shape[1] for tile in tiles)
    n_columns = max(map(len, rows))
    heights = [max(tile.image.shape[0] for tile in row) + _LINE_PX for row in rows]
    size = (n_columns * (width + _GAP_PX), sum(heights) + _GAP_PX * len(rows))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            x = column * (width + _GAP_PX)
            image.paste(Image.fromarray(tile.image), (x, y))
            _write(draw, (x, y + height - _LINE_PX), tile.label, width)
        y += height + _GAP_PX
    return np.asarray(image)


def make_legend(
    entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]], width_px: int
) -> list[Tile]:
    """Returns bars of color, each with its name below."""
    shape = (_LINE_PX // 2, width_px, 3)
    return [
        Tile(np.broadcast_to(color, shape).astype(np.uint8), name)
        for name, color in entries
    ]


def to_png(image: UInt8[np.ndarray, "h w *channels"]) -> bytes:
    """Encodes a picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int
) -> None:
    """Writes as much of a text as fits."""
    font = ImageFont.load_default(_FONT_PX)
    shown = visible(text, _MAX_LABEL_CHARS)
    while shown and draw.textlength(shown, font) > width:
        shown = shown[:-1]
    draw.text(place, shown, "black", font)
