"""Scenes of one to five colored shapes: what is in them, and where.

In: a numpy `Generator`. Out: a frozen `Scene`, and how its objects lie relative to each
other. Lengths and positions are fractions of the side of a scene, x to the right,
y down; angles are radians.
"""

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

COLOR_TO_RGB = {
    "red": (220, 28, 36),
    "orange": (250, 138, 16),
    "yellow": (250, 226, 28),
    "green": (34, 158, 56),
    "cyan": (40, 208, 216),
    "blue": (36, 72, 218),
    "purple": (132, 44, 172),
    "pink": (252, 134, 192),
    "white": (250, 250, 250),
}
BACKGROUND_TO_RGB = {
    "gray": (150, 150, 150),
    "beige": (224, 211, 186),
    "tan": (188, 160, 128),
    "slate": (112, 128, 144),
    "olive": (142, 142, 96),
    "pale mint": (190, 220, 205),
    "dusty rose": (200, 164, 166),
    "pale blue": (178, 200, 222),
}
SIZE_TO_DIAMETER = {"small": 0.28, "medium": 0.38, "large": 0.52}
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUND_KINDS = ("plain", "gradient", "striped", "checked", "noisy")

MIN_VISIBLE = 0.65  # of the area of every object
MIN_LARGEST_RATIO = 1.3  # visible area of the largest object over that of the next

_N_OBJECTS_CUMULATIVE = (0.22, 0.52, 0.74, 0.90, 1.0)  # for 1, 2, 3, 4, 5 objects
_LAYOUT_PX = 96  # side of the grid on which areas and overlaps are measured
_GRID_SLACK = 1.06  # bounds are kept with this margin, as the grid is coarse
_MIN_OVERLAP = 0.10  # of the smaller object; less would be neither apart nor over
_GAP = 1.10  # objects that do not overlap are apart by a tenth of their size

Rgb = tuple[float, float, float]
Image = npt.NDArray[np.uint8]
Contours = tuple[npt.NDArray[np.float64], ...]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A field of tones in [-1, 1]; `n_cycles` per unit of length."""

    kind: str
    n_cycles: float
    angle: float
    phases: tuple[float, float]
    rng_seed: int
    is_mirrored: bool = False


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One shape; `diameter` is the longer side of its upright bounding box."""

    color: str
    shape: str
    size: str
    pattern: Pattern
    cx: float
    cy: float
    angle: float
    diameter: float
    rgb: Rgb

    @property
    def texture(self) -> str:
        return self.pattern.kind

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclasses.dataclass(frozen=True)
class Background:
    name: str
    pattern: Pattern
    rgb: Rgb
    contrast: float

    @property
    def kind(self) -> str:
        return self.pattern.kind


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in painter's order: a later one hides parts of an earlier one."""

    objects: tuple[SceneObject, ...]
    background: Background


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the objects are, in the order of `Scene.objects`.

    `areas` and `visible_areas` are fractions of the scene, `overlaps[i][j]` is the
    common area of two objects over that of the smaller, 0 for objects that are apart.
    """

    areas: tuple[float, ...]
    visible_areas: tuple[float, ...]
    overlaps: tuple[tuple[float, ...], ...]


def _regular(n_points: int, radius: float, turn: float) -> npt.NDArray[np.float64]:
    angles = turn + 2 * np.pi * np.arange(n_points) / n_points
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> npt.NDArray[np.float64]:
    points = np.empty((10, 2))
    points[0::2] = _regular(5, 0.5, -np.pi / 2)
    points[1::2] = _regular(5, 0.225, -np.pi / 2 + np.pi / 5)
    return points


def _heart() -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1)


def _unit(*contours: npt.ArrayLike) -> Contours:
    """Centers the bounding box of the first contour; its longer side becomes 1."""
    arrays = tuple(np.asarray(contour, np.float64) for contour in contours)
    low, high = arrays[0].min(axis=0), arrays[0].max(axis=0)
    return tuple((array - (low + high) / 2) / (high - low).max() for array in arrays)


def _cross() -> npt.NDArray[np.float64]:
    long, short = 0.5, 0.18
    arm = np.array([(short, -long), (short, -short), (long, -short)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(turn, i) for i in range(4)])


SHAPE_TO_CONTOURS: dict[str, Contours] = {
    "circle": _unit(_regular(48, 0.5, 0.0)),
    "square": _unit([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": _unit([(0, -0.45), (0.5, 0.45), (-0.5, 0.45)]),
    "star": _unit(_star()),
    "cross": _unit(_cross()),
    "ring": _unit(_regular(48, 0.5, 0.0), _regular(48, 0.19, 0.0)),
    "heart": _unit(_heart()),
}


def classes() -> tuple[str, ...]:
    """Names such as "red circle"; class `i` has the mask id `i + 1`."""
    return tuple(
        f"{color} {shape}" for color in COLOR_TO_RGB for shape in SHAPE_TO_CONTOURS
    )


_CLASS_TO_ID = {name: i for i, name in enumerate(classes(), start=1)}


def class_id(color: str, shape: str) -> int:
    """The mask id of a color and shape, from 1; 0 is the background."""
    return _CLASS_TO_ID[f"{color} {shape}"]


# Sampling


def _pick(names: tuple[str, ...], unit: float) -> str:
    return names[int(unit * len(names))]


def _jitter(rgb: Rgb, units: list[float], amount: float) -> Rgb:
    red, green, blue = (
        min(max(value + amount * (2 * unit - 1), 0.0), 255.0)
        for value, unit in zip(rgb, units, strict=True)
    )
    return red, green, blue


def _sample_object(rng: np.random.Generator) -> SceneObject:
    u = rng.random(12).tolist()
    color = _pick(tuple(COLOR_TO_RGB), u[0])
    size = _pick(tuple(SIZE_TO_DIAMETER), u[1])
    texture = "plain" if u[2] < 0.4 else _pick(TEXTURES[1:], (u[2] - 0.4) / 0.6)
    diameter = SIZE_TO_DIAMETER[size] * (0.92 + 0.16 * u[3])
    n_stripes = {"small": 2.6, "medium": 3.4, "large": 4.2}[size]
    pattern = Pattern(
        kind=texture,
        n_cycles=n_stripes * (0.9 + 0.2 * u[4]) / diameter,
        angle=math.pi * u[5],
        phases=(math.tau * u[6], math.tau * u[7]),
        rng_seed=0,
    )
    return SceneObject(
        color=color,
        shape=_pick(tuple(SHAPE_TO_CONTOURS), u[8]),
        size=size,
        pattern=pattern,
        cx=0.5,
        cy=0.5,
        angle=math.radians(15) * (2 * u[9] - 1),
        diameter=diameter,
        rgb=_jitter(COLOR_TO_RGB[color], rng.random(3).tolist(), 9),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    u = rng.random(10).tolist()
    name = _pick(tuple(BACKGROUND_TO_RGB), u[0])
    kind = _pick(BACKGROUND_KINDS, u[1])
    low, high = {"noisy": (14, 30), "gradient": (1, 1)}.get(kind, (4, 10))
    pattern = Pattern(
        kind=kind,
        n_cycles=low + (high - low) * u[2],
        angle=math.tau * u[3],
        phases=(math.tau * u[4], math.tau * u[5]),
        rng_seed=int(rng.integers(2**32)),
    )
    rgb = _jitter(BACKGROUND_TO_RGB[name], u[6:9], 8)
    contrast = (30 if kind == "gradient" else 15) * (0.8 + 0.4 * u[9])
    return Background(name=name, pattern=pattern, rgb=rgb, contrast=contrast)


def _has_distinct_largest(sizes: list[float]) -> bool:
    if len(sizes) == 1:
        return True
    second, first = sorted(sizes)[-2:]
    return first >= MIN_LARGEST_RATIO * _GRID_SLACK * second


def _sample_objects(rng: np.random.Generator, n_objects: int) -> list[SceneObject]:
    """Objects of different color and shape, one of which is clearly the largest."""
    while True:
        objects = [_sample_object(rng) for _ in range(n_objects)]
        areas = [_shape_area(obj.shape) * obj.diameter**2 for obj in objects]
        is_distinct = len({obj.pair for obj in objects}) == n_objects
        if is_distinct and _has_distinct_largest(areas) and sum(areas) < 0.5:
            return objects


def _can_join(placed: list["_Raster"], new: "_Raster") -> bool:
    """Whether the new one hides little, and is apart from each or clearly over it."""
    for old in placed:
        left_px = cv2.countNonZero(old.visible & ~new.inside)
        if left_px < MIN_VISIBLE * _GRID_SLACK * old.n_px:
            return False
        overlap = _overlap(old, new)
        is_clear = overlap >= _MIN_OVERLAP and old.color != new.color
        if overlap and not is_clear:
            return False
    return True


def _place(
    rng: np.random.Generator, objects: list[SceneObject]
) -> tuple[SceneObject, ...] | None:
    """Puts objects one after another where they fit; None if one does not."""
    placed: list[SceneObject] = []
    rasters: list[_Raster] = []
    for obj in objects:
        room = 0.5 - 0.6 * obj.diameter  # 0.6, as a square is turned by 15 degrees
        for x, y in (0.5 + room * (2 * rng.random((12, 2)) - 1)).tolist():
            tried = dataclasses.replace(obj, cx=x, cy=y)
            raster = _rasterize(tried)
            if _can_join(rasters, raster):
                placed.append(tried)
                rasters = _cover(rasters, raster)
                break
        else:
            return None
    is_distinct = _has_distinct_largest([_visible_px(raster) for raster in rasters])
    return tuple(placed) if is_distinct else None


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene whose largest object is unambiguous and whose objects are all visible."""
    background = _sample_background(rng)
    n_objects = 1 + int(np.searchsorted(_N_OBJECTS_CUMULATIVE, rng.random()))
    placed = None
    while placed is None:
        placed = _place(rng, _sample_objects(rng, n_objects))
    return Scene(objects=placed, background=background)


def flip(scene: Scene) -> Scene:
    """The scene in a mirror: left and right change places."""

    def mirror(pattern: Pattern) -> Pattern:
        return dataclasses.replace(pattern, is_mirrored=not pattern.is_mirrored)

    objects = tuple(
        dataclasses.replace(
            obj, cx=1 - obj.cx, angle=-obj.angle, pattern=mirror(obj.pattern)
        )
        for obj in scene.objects
    )
    background = dataclasses.replace(
        scene.background, pattern=mirror(scene.background.pattern)
    )
    return Scene(objects=objects, background=background)


# Geometry


def _shape_area(shape: str) -> float:
    """Area of a shape of diameter 1."""
    areas = [
        cv2.contourArea(contour.astype(np.float32))
        for contour in SHAPE_TO_CONTOURS[shape]
    ]
    return 2 * areas[0] - sum(areas)


def outlines(obj: SceneObject, side_px: float, scale: float = 1.0) -> Contours:
    """The outlines of an object in pixels of a scene of the given side."""
    cos, sin = math.cos(obj.angle), math.sin(obj.angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * (obj.diameter * scale * side_px)
    center = np.array([obj.cx * side_px, obj.cy * side_px])
    return tuple(contour @ turn + center for contour in SHAPE_TO_CONTOURS[obj.shape])


def fill_inside(contours: Contours, size_px: tuple[int, int]) -> Image:
    """Ones inside the outlines on a canvas of (width, height)."""
    canvas = np.zeros(size_px[::-1], np.uint8)
    points = [np.rint(contour - 0.5).astype(np.int32) for contour in contours]
    return cv2.fillPoly(canvas, points, 1)


@dataclasses.dataclass(frozen=True)
class _Raster:
    """One object on the layout grid: its pixels, those with a gap, those not hidden."""

    color: str
    inside: Image
    around: Image
    visible: Image
    n_px: int


def _rasterize(obj: SceneObject) -> _Raster:
    size_px = (_LAYOUT_PX, _LAYOUT_PX)
    inside = fill_inside(outlines(obj, _LAYOUT_PX), size_px)
    # The hole of a ring is "around" it: what lies there is neither apart nor over.
    around = fill_inside(outlines(obj, _LAYOUT_PX, _GAP)[:1], size_px)
    return _Raster(obj.color, inside, around, inside, cv2.countNonZero(inside))


def _cover(rasters: list[_Raster], new: _Raster) -> list[_Raster]:
    """Paints the new one over the others."""
    seen = ~new.inside
    hidden = [
        dataclasses.replace(old, visible=old.visible & seen & np.uint8(1))
        for old in rasters
    ]
    return [*hidden, new]


def _visible_px(raster: _Raster) -> int:
    return cv2.countNonZero(raster.visible)


def _overlap(one: _Raster, other: _Raster) -> float:
    """Common area over that of the smaller; tiny but not 0 if they only come close."""
    if not cv2.countNonZero(one.around & other.around):
        return 0.0
    common_px = cv2.countNonZero(one.inside & other.inside)
    return max(common_px / min(one.n_px, other.n_px), 1e-6)


def measure(objects: tuple[SceneObject, ...]) -> Layout:
    """Areas and overlaps of objects, counted on a grid."""
    rasters: list[_Raster] = []
    for obj in objects:
        rasters = _cover(rasters, _rasterize(obj))
    n_px = _LAYOUT_PX**2
    return Layout(
        areas=tuple(raster.n_px / n_px for raster in rasters),
        visible_areas=tuple(_visible_px(raster) / n_px for raster in rasters),
        overlaps=tuple(
            tuple(_overlap(one, other) for other in rasters) for one in rasters
        ),
    )
