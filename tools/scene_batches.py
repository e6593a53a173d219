"""Endless training batches of drawn scenes for the tiny checkpoints.

In: a seed. Out: dicts of NumPy arrays: one or two views of each picture (the second is
a copy, altered as a website might do), the contents of each patch, and texts.
"""

import dataclasses
import multiprocessing
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.demo_web import descriptions, off_topic, rendering
from pipeline.demo_web import scene as drawing

SIDE_PX = 72
PATCH_PX = 12
RESAMPLE = Image.Resampling.BILINEAR

_COLORS = tuple(drawing.COLOR_TO_RGB)
_SHAPES = tuple(drawing.SHAPE_TO_CONTOURS)
PATCH_CLASSES = ("background", *_COLORS, "background", *_SHAPES)
N_PATCH_CLASSES = len(PATCH_CLASSES)
N_COLOR_CLASSES = 1 + len(_COLORS)  # the first ones; the others are shapes

OFF_TOPIC_SHARE = 0.06
_USES = 6
_MAX_KEPT = 40_000
_QUEUE_BATCHES = 16

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with the class of every pixel and its texts, by name."""

    rgb: Pixels
    mask: Pixels
    texts: dict[str, str]


def _class_table() -> npt.NDArray[np.float32]:
    """Maps a mask id to a one-hot color followed by a one-hot shape."""
    table = np.zeros((1 + len(drawing.classes()), N_PATCH_CLASSES), np.float32)
    table[0, 0] = table[0, 1 + len(_COLORS)] = 1
    for i, name in enumerate(drawing.classes(), start=1):
        color, shape = name.split()
        table[i, 1 + _COLORS.index(color)] = 1
        table[i, 2 + len(_COLORS) + _SHAPES.index(shape)] = 1
    return table


_CLASS_TABLE = _class_table()
_PATCHES_PER_SIDE = SIDE_PX // PATCH_PX
_N_PATCHES = _PATCHES_PER_SIDE**2
_PATCH_OF_PIXEL = np.kron(
    np.arange(_N_PATCHES).reshape(_PATCHES_PER_SIDE, -1),
    np.ones((PATCH_PX, PATCH_PX), np.int64),
)


def patch_shares(mask: Pixels) -> npt.NDArray[np.floating]:
    """Returns shares of each color and shape in each patch, `[p, N_PATCH_CLASSES]`."""
    size = (SIDE_PX, SIDE_PX)
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    n_ids = len(_CLASS_TABLE)
    counts = np.bincount(
        (_PATCH_OF_PIXEL * n_ids + small).ravel(), minlength=_N_PATCHES * n_ids
    )
    return counts.reshape(_N_PATCHES, n_ids) @ _CLASS_TABLE / PATCH_PX**2


def resize(rgb: Pixels) -> Pixels:
    """Resizes to the models' square, as their preprocessor does."""
    size = (SIDE_PX, SIDE_PX)
    return np.asarray(Image.fromarray(rgb).resize(size, RESAMPLE))


def recompress(rgb: Pixels, quality: int) -> Pixels:
    """Encodes as JPEG and decodes again."""
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return decoded[..., ::-1]


def crop(picture: Picture, area: float, rng: np.random.Generator) -> Picture:
    """Cuts out a random part of the given area, with the same aspect."""
    height, width = picture.mask.shape
    h, w = round(height * area**0.5), round(width * area**0.5)
    y, x = rng.integers(0, (height - h + 1, width - w + 1))
    box = (slice(y, y + h), slice(x, x + w))
    return dataclasses.replace(picture, rgb=picture.rgb[box], mask=picture.mask[box])


def mirror(picture: Picture) -> Picture:
    return dataclasses.replace(
        picture, rgb=picture.rgb[:, ::-1], mask=picture.mask[:, ::-1]
    )


def brighten(rgb: Pixels, factor: float) -> Pixels:
    return np.clip(rgb * np.float32(factor), 0, 255).astype(np.uint8)


def shrink(rgb: Pixels, factor: float) -> Pixels:
    height, width = rgb.shape[:2]
    size = (max(round(width * factor), 8), max(round(height * factor), 8))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def alter(picture: Picture, rng: np.random.Generator) -> Picture:
    """Makes a near-copy: mirrored, cropped, resized, brightened or compressed."""
    is_chosen = rng.random(5) < (0.5, 0.6, 0.4, 0.6, 0.5)
    if is_chosen[0]:
        picture = mirror(picture)
    if is_chosen[1]:
        picture = crop(picture, rng.uniform(0.75, 0.95), rng)
    rgb = np.ascontiguousarray(picture.rgb)
    if is_chosen[2]:
        rgb = shrink(rgb, rng.uniform(0.55, 1.0))
    if is_chosen[3]:
        rgb = brighten(rgb, rng.uniform(0.7, 1.3))
    if is_chosen[4]:
        rgb = recompress(rgb, int(rng.integers(20, 60)))
    return dataclasses.replace(picture, rgb=rgb)


def sample_picture(rng: np.random.Generator, off_topic_share: float) -> Picture:
    """Draws a scene or, with `off_topic_share`, something else from the web."""
    side_px = int(rng.integers(96, 161))
    if rng.random() < off_topic_share:
        rgb, text = off_topic.draw_off_topic(rng, side_px)
        return Picture(rgb, np.zeros(rgb.shape[:2], np.uint8), {"alt_text": text})
    scene = drawing.sample_scene(rng)
    aspect = float(np.exp(rng.uniform(-0.4, 0.4))) if rng.random() < 0.25 else 1.0
    rgb, mask = rendering.draw(scene, side_px, aspect)
    return Picture(rgb, mask, _texts(scene, rng))


def sample_texts(rng: np.random.Generator) -> dict[str, str]:
    """Returns texts as `sample_picture` would, without drawing the picture."""
    if rng.random() < OFF_TOPIC_SHARE:
        return {"alt_text": off_topic.draw_off_topic(rng, 8)[1]}
    return _texts(drawing.sample_scene(rng), rng)


def _texts(scene: drawing.Scene, rng: np.random.Generator) -> dict[str, str]:
    return descriptions.captions(scene) | {
        "alt_text": descriptions.alt_text(scene, rng)
    }


class Sampler:
    """Draws one new picture in `_USES` and reuses earlier ones for the rest.

    Drawing a picture costs more than training on it. A reused one is altered again.
    """

    def __init__(self, rng: np.random.Generator, off_topic_share: float):
        self._rng = rng
        self._off_topic_share = off_topic_share
        self._kept: list[Picture] = []

    def batch(self, n: int, n_views: int) -> dict[str, Any]:
        """Returns `views` `[v, n, s, s, 3]`, `shares` `[v, n, p, c]` and `texts`."""
        n_new = max(n // _USES, n - len(self._kept))
        new = [sample_picture(self._rng, self._off_topic_share) for _ in range(n_new)]
        chosen = self._rng.choice(len(self._kept), n - n_new, replace=False).tolist()
        pictures = [*new, *(self._kept[i] for i in chosen)]
        self._kept = [*self._kept, *new][-_MAX_KEPT:]
        views = [pictures]
        if n_views == 2:
            views.append([alter(picture, self._rng) for picture in pictures])
        return {
            "views": np.stack([[resize(p.rgb) for p in view] for view in views]),
            "shares": np.array([[patch_shares(p.mask) for p in v] for v in views]),
            "texts": [picture.texts for picture in pictures],
        }


def _produce(
    queue: multiprocessing.Queue,
    rng_seed: int,
    n: int,
    n_views: int,
    off_topic_share: float,
) -> None:
    cv2.setNumThreads(1)
    sampler = Sampler(np.random.default_rng(rng_seed), off_topic_share)
    while True:
        queue.put(sampler.batch(n, n_views))


def stream(
    rng_seed: int, n: int, *, n_views: int = 1, off_topic_share: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Yields batches made in another process, in an order that the seed determines."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(_QUEUE_BATCHES)
    arguments = (queue, rng_seed, n, n_views, off_topic_share)
    worker = context.Process(target=_produce, args=arguments, daemon=True)
    worker.start()
    try:
        while True:
            yield queue.get()
    finally:
        worker.terminate()
