"""Hard scenes: small, partly hidden shapes among clutter on textured backgrounds.

In: a numpy `Generator`. Out: a scene of `pipeline.demo_web.scene` and a picture of it,
with the exact class of each pixel. Some combinations of color and shape are held out:
only evaluations have them.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.demo_web import rendering
from pipeline.demo_web import scene as drawing
from pipeline.demo_web.scene import Background, Image, Pattern, Scene, SceneObject

Pair = tuple[str, str]  # color, shape

COLORS = ("red", "yellow", "green", "cyan", "blue", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIDES_PX = range(64, 97)
N_OBJECTS = (2, 3, 4)
SIZE_TO_DIAMETER = {"small": 0.25, "medium": 0.34, "large": 0.46}
_GROUNDS = tuple(drawing.BACKGROUND_TO_RGB)
BACKGROUND_KINDS = ("striped", "checked", "noisy", "gradient")
MIN_VISIBLE = 0.5  # share of every object that no other hides

_CONTRASTS = (20, 45)  # of backgrounds; the demo's are 12 to 18
_N_MARKS = (3, 8)  # distractors behind the objects
_N_STROKES = (0, 2)  # over them
_LIKE_OBJECTS = 0.2  # share of marks and strokes with colors of objects
_NOISE = 6  # standard deviation, of 255

# One shape of each color, and every shape at least once.
HELD_OUT: frozenset[Pair] = frozenset(
    (color, SHAPES[(2 * i + 1) % len(SHAPES)]) for i, color in enumerate(COLORS)
)
ALL_PAIRS: tuple[Pair, ...] = tuple((c, s) for c in COLORS for s in SHAPES)
SEEN_PAIRS: tuple[Pair, ...] = tuple(p for p in ALL_PAIRS if p not in HELD_OUT)
CLASSES = tuple(" ".join(pair) for pair in ALL_PAIRS)  # mask id `i + 1`

_DRAWN_ID_TO_CLASS = np.zeros(1 + len(drawing.classes()), np.uint8)
for _i, _pair in enumerate(ALL_PAIRS, start=1):
    _DRAWN_ID_TO_CLASS[drawing.class_id(*_pair)] = _i


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A scene and its pixels."""

    scene: Scene
    rgb: Image
    mask: Image  # `i + 1` for `CLASSES[i]`, 0 for no object


def sample_picture(rng: np.random.Generator, pairs: Sequence[Pair]) -> Picture:
    """Draws a square scene with objects of some of `pairs`."""
    scene = sample_scene(rng, pairs)
    side_px = int(rng.choice(SIDES_PX))
    rgb, drawn = rendering.draw(scene, side_px)
    mask = _DRAWN_ID_TO_CLASS[drawn]
    marks = _draw_marks(rng, rgb, _between(rng, _N_MARKS))
    rgb = np.where(mask[..., None] > 0, rgb, marks)
    strokes, is_stroke = _draw_strokes(rng, rgb, _between(rng, _N_STROKES))
    noise = rng.normal(0, _NOISE, strokes.shape)
    rgb = np.rint(strokes + noise).clip(0, 255).astype(np.uint8)
    return Picture(scene, rgb, np.where(is_stroke, np.uint8(0), mask))


def sample_scene(rng: np.random.Generator, pairs: Sequence[Pair]) -> Scene:
    """Samples objects of different pairs, each with `MIN_VISIBLE` of it visible."""
    background = _sample_background(rng)
    while True:
        n_objects = int(rng.choice(N_OBJECTS))
        chosen = rng.choice(len(pairs), n_objects, replace=False).tolist()
        objects = tuple(_sample_object(rng, pairs[i]) for i in chosen)
        layout = drawing.measure(objects)
        seen = zip(layout.visible_areas, layout.areas, strict=True)
        if all(visible >= MIN_VISIBLE * area for visible, area in seen):
            return Scene(objects, background)


def shapes_of(mask: Image) -> Image:
    """Maps a mask to ids of shapes, from 1 in the order of `SHAPES`; 0 is no object."""
    return np.where(mask > 0, (mask - 1) % len(SHAPES) + 1, 0).astype(np.uint8)


def colors_of(mask: Image) -> Image:
    """Maps a mask to ids of colors, from 1 in the order of `COLORS`; 0 is no object."""
    return np.where(mask > 0, (mask - 1) // len(SHAPES) + 1, 0).astype(np.uint8)


def _sample_object(rng: np.random.Generator, pair: Pair) -> SceneObject:
    color, shape = pair
    size = str(rng.choice(tuple(SIZE_TO_DIAMETER)))
    diameter = SIZE_TO_DIAMETER[size] * rng.uniform(0.9, 1.1)
    kind = "plain" if rng.random() < 0.4 else str(rng.choice(drawing.TEXTURES[1:]))
    margin = 0.55 * diameter
    cx, cy = rng.uniform(margin, 1 - margin, 2).tolist()
    return SceneObject(
        color=color,
        shape=shape,
        size=size,
        pattern=_pattern(rng, kind, rng.uniform(2.4, 3.6) / diameter),
        cx=cx,
        cy=cy,
        angle=math.radians(20) * rng.uniform(-1, 1),
        diameter=diameter,
        rgb=_jitter(rng, drawing.COLOR_TO_RGB[color], 20),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    name = str(rng.choice(_GROUNDS))
    kind = str(rng.choice(BACKGROUND_KINDS))
    low, high = (14, 30) if kind == "noisy" else (4, 10)
    return Background(
        name=name,
        pattern=_pattern(rng, kind, rng.uniform(low, high)),
        rgb=_jitter(rng, drawing.BACKGROUND_TO_RGB[name], 20),
        contrast=rng.uniform(*_CONTRASTS),
    )


def _pattern(rng: np.random.Generator, kind: str, n_cycles: float) -> Pattern:
    first, second = rng.uniform(0, math.tau, 2).tolist()
    return Pattern(
        kind=kind,
        n_cycles=n_cycles,
        angle=rng.uniform(0, math.tau),
        phases=(first, second),
        rng_seed=int(rng.integers(2**32)),
    )


def _jitter(rng: np.random.Generator, rgb: drawing.Rgb, amount: float) -> drawing.Rgb:
    red, green, blue = (np.array(rgb) + rng.uniform(-amount, amount, 3)).clip(0, 255)
    return float(red), float(green), float(blue)


def _draw_marks(rng: np.random.Generator, rgb: Image, n_marks: int) -> Image:
    """Blobs and strokes behind the objects."""
    canvas = rgb.copy()
    side_px = len(canvas)
    for _ in range(n_marks):
        color = _sample_color(rng)
        if rng.random() < 0.5:
            center = rng.uniform(0, side_px, 2)
            points = center + rng.normal(0, 0.05 * side_px, (5, 2))
            hull = cv2.convexHull(points.astype(np.int32))
            cv2.fillConvexPoly(canvas, hull, color, cv2.LINE_AA)
        else:
            width_px = 1 + int(rng.integers(3))
            points = _sample_stroke(rng, side_px)
            cv2.polylines(canvas, [points], False, color, width_px, cv2.LINE_AA)
    return canvas


def _draw_strokes(
    rng: np.random.Generator, rgb: Image, n_strokes: int
) -> tuple[Image, np.ndarray]:
    """Draws lines over everything; returns the picture and where they are."""
    canvas = rgb.copy()
    covered = np.zeros(rgb.shape[:2], np.uint8)
    for _ in range(n_strokes):
        color, points = _sample_color(rng), _sample_stroke(rng, len(rgb))
        cv2.polylines(canvas, [points], False, color, 2, cv2.LINE_AA)
        cv2.polylines(covered, [points], False, 255, 2, cv2.LINE_AA)
    return canvas, covered > 127


def _sample_stroke(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """Start, bend and end of a line."""
    start, end = rng.uniform(0, side_px, (2, 2))
    bend = (start + end) / 2 + rng.normal(0, 0.15 * side_px, 2)
    return np.stack([start, bend, end]).astype(np.int32)


def _sample_color(rng: np.random.Generator) -> drawing.Rgb:
    is_like_objects = rng.random() < _LIKE_OBJECTS
    if is_like_objects:
        base = drawing.COLOR_TO_RGB[str(rng.choice(COLORS))]
    else:
        base = drawing.BACKGROUND_TO_RGB[str(rng.choice(_GROUNDS))]
    return _jitter(rng, base, 30)


def _between(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))
