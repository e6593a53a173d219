"""Paints scenes: pixels, and the exact class of each pixel.

In: a `Scene`. Out: RGB and class ids of the same height and width.
"""

import functools
import math

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.demo_web.scene import (
    Background,
    Contours,
    Image,
    Pattern,
    Scene,
    SceneObject,
    class_id,
    fill_inside,
    outlines,
)

_SUPERSAMPLING = 4
_OUTLINE = 0.026  # width, inside the shape
_TEXTURE_CONTRAST = 0.3  # how much darker the second tone of a texture is
_OUTLINE_RGB = np.array((26, 22, 30), np.float32)

Field = npt.NDArray[np.floating]


@functools.lru_cache(maxsize=16)
def _grid(width_px: int, height_px: int) -> tuple[Field, Field]:
    """Pixel centers in pixels, as a row and a column."""
    x = np.arange(width_px, dtype=np.float32)[None] + 0.5
    y = np.arange(height_px, dtype=np.float32)[:, None] + 0.5
    return x, y


def _noise(pattern: Pattern, width_px: int, height_px: int) -> Field:
    n_cells = max(int(pattern.n_cycles), 2)
    rng = np.random.Generator(np.random.SFC64(pattern.rng_seed))
    coarse = rng.random((n_cells, n_cells), np.float32) * 2 - 1
    field = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    return field[:, ::-1] if pattern.is_mirrored else field


def _tones(pattern: Pattern, x: Field, y: Field) -> Field:
    """The pattern at positions relative to its center, in [-1, 1], softly edged."""
    if pattern.is_mirrored:
        x = -x
    cos, sin = math.cos(pattern.angle), math.sin(pattern.angle)
    if pattern.kind == "gradient":
        return np.clip(1.6 * (x * cos + y * sin), -1, 1)
    per_length = math.tau * pattern.n_cycles
    u = np.cos(per_length * (x * cos + y * sin) + pattern.phases[0])
    if pattern.kind == "striped":
        return np.clip(3 * u, -1, 1)
    v = np.cos(per_length * (y * cos - x * sin) + pattern.phases[1])
    if pattern.kind == "checked":
        return np.clip(5 * u * v, -1, 1)
    return np.clip(3 * (u + v - 0.6), -1, 1)  # dots


def _paint_background(background: Background, width_px: int, height_px: int) -> Field:
    rgb = np.array(background.rgb, np.float32)
    pattern = background.pattern
    if pattern.kind == "plain":
        return np.broadcast_to(rgb, (height_px, width_px, 3)).copy()
    if pattern.kind == "noisy":
        tones = _noise(pattern, width_px, height_px)
    else:
        side_px = min(width_px, height_px)
        x, y = _grid(width_px, height_px)
        x, y = (x - width_px / 2) / side_px, (y - height_px / 2) / side_px
        tones = _tones(pattern, x, y)
    return rgb + (background.contrast * tones)[..., None]


def _coverage(contours: Contours, size_px: tuple[int, int], line_px: float) -> Field:
    """Shares of each pixel that are inside, and that are outline: [2, h, w]."""
    fine = (size_px[0] * _SUPERSAMPLING, size_px[1] * _SUPERSAMPLING)
    scaled = tuple(contour * _SUPERSAMPLING for contour in contours)
    inside = fill_inside(scaled, fine) * np.uint8(255)
    points = [np.rint(contour - 0.5).astype(np.int32) for contour in scaled]
    width = max(round(2 * line_px * _SUPERSAMPLING), 1)
    line = cv2.polylines(np.zeros_like(inside), points, True, 255, width) & inside
    shares = [
        cv2.resize(fill, size_px, interpolation=cv2.INTER_AREA)
        for fill in (inside, line)
    ]
    return np.stack(shares).astype(np.float32) / 255


def _paint_object(
    obj: SceneObject, side_px: int, offset_px: tuple[int, int], canvas: Field
) -> tuple[tuple[slice, slice], Image]:
    """Paints on the canvas; returns the box it touched and where it covers half."""
    contours = tuple(c + offset_px for c in outlines(obj, side_px))
    height_px, width_px = canvas.shape[:2]
    x0, y0 = np.floor(contours[0].min(axis=0)).astype(int).clip(0).tolist()
    x1, y1 = np.ceil(contours[0].max(axis=0)).astype(int).tolist()
    x1, y1 = min(x1 + 1, width_px), min(y1 + 1, height_px)
    size_px = (x1 - x0, y1 - y0)
    inside, line = _coverage(
        tuple(c - (x0, y0) for c in contours), size_px, _OUTLINE * side_px
    )
    x, y = _grid(*size_px)
    x = (x + x0 - offset_px[0]) / side_px - obj.cx
    y = (y + y0 - offset_px[1]) / side_px - obj.cy
    box = (slice(y0, y1), slice(x0, x1))
    color = _object_colors(obj, x, y)
    under = canvas[box] * (1 - inside)[..., None]
    fill = color * (inside - line)[..., None]
    canvas[box] = under + fill + _OUTLINE_RGB * line[..., None]
    return box, inside >= 0.5


def _object_colors(obj: SceneObject, x: Field, y: Field) -> Field:
    rgb = np.array(obj.rgb, np.float32)
    if obj.texture == "plain":
        return rgb
    share = (1 - _tones(obj.pattern, x, y)) / 2
    return rgb * (1 - _TEXTURE_CONTRAST * share[..., None])


def draw(scene: Scene, side_px: int = 128, aspect: float = 1.0) -> tuple[Image, Image]:
    """RGB [h, w, 3] and class ids [h, w] of a scene.

    `side_px` is the shorter side and `aspect` width over height; what a longer side
    adds to the square of the scene, half on each end, shows only background. A pixel
    belongs to the topmost object that covers at least half of it.
    """
    width_px = round(side_px * max(aspect, 1.0))
    height_px = round(side_px * max(1 / aspect, 1.0))
    offset_px = ((width_px - side_px) // 2, (height_px - side_px) // 2)
    canvas = _paint_background(scene.background, width_px, height_px)
    mask = np.zeros((height_px, width_px), np.uint8)
    for obj in scene.objects:
        box, is_covered = _paint_object(obj, side_px, offset_px, canvas)
        mask[box][is_covered] = class_id(*obj.pair)
    return np.rint(canvas).clip(0, 255).astype(np.uint8), mask
