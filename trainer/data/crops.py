"""Random numbers in, boxes of an image and crops of it out. Pure: uint8 to uint8.

Boxes depend only on the draws and the size of the image, so the image can be decoded
at no more than the resolution that its crops need.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from trainer.config import CropConfig

cv2.setNumThreads(1)  # the loader has its own threads and processes


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Crop(NamedTuple):
    """A box that becomes a square of `size_px`."""

    box: Box
    size_px: int
    is_flipped: bool


N_DRAWS = 5  # area, aspect, top, left, flip


def random_crop(
    height: int, width: int, draws: Sequence[float], config: CropConfig
) -> Crop:
    """Returns a crop of an image of `height` x `width` pixels.

    `draws` are `N_DRAWS` uniform numbers in [0, 1): area, aspect, top, left, flip.

    >>> random_crop(100, 200, [0.5] * 5, CropConfig(size_px=64))
    Crop(box=Box(top=0, left=34, height=100, width=133), size_px=64, is_flipped=False)
    """
    box = random_box(height, width, draws[:4], config)
    return Crop(box, config.size_px, draws[4] < config.flip_probability)


def random_crops(
    height: int,
    width: int,
    draws: Float[np.ndarray, "crops 5"],
    config: CropConfig,
) -> list[Crop]:
    """Returns one crop per row of draws."""
    return [random_crop(height, width, row, config) for row in draws.tolist()]


def random_box(
    height: int, width: int, draws: Sequence[float], config: CropConfig
) -> Box:
    """Returns a box of uniform area, log-uniform aspect and uniform place.

    The aspect is drawn among those with which a box of that area fits into the image,
    so one draw is enough. Drawing again until a box fits, as other code does, favors
    small boxes of wide images. If no aspect fits, the box is the largest of the nearest
    allowed aspect.
    """
    area = config.min_area + draws[0] * (config.max_area - config.min_area)
    lowest = max(config.min_aspect, area * width / height)
    highest = min(config.max_aspect, width / (area * height))
    if lowest <= highest:
        aspect = lowest * (highest / lowest) ** draws[1]
    else:  # the image is longer than any allowed box of this area
        aspect = min(max(width / height, config.min_aspect), config.max_aspect)
    pixels = min(area * height * width, height**2 * aspect, width**2 / aspect)
    box_width = min(width, max(1, round(math.sqrt(pixels * aspect))))
    box_height = min(height, max(1, round(math.sqrt(pixels / aspect))))
    return Box(
        top=int(draws[2] * (height - box_height + 1)),
        left=int(draws[3] * (width - box_width + 1)),
        height=box_height,
        width=box_width,
    )


def reduction(crops: Sequence[Crop]) -> int:
    """Returns the largest of 1, 2, 4 and 8 at which no crop has to be enlarged again.

    JPEG decodes faster at these fractions, and averages pixels while it does.
    """
    spare = min(min(crop.box.height, crop.box.width) / crop.size_px for crop in crops)
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(spare, 1))


def cut(
    image: UInt8[np.ndarray, "h w c"],
    crop: Crop,
    factor: int,
    out: UInt8[np.ndarray, "size size c"],
) -> None:
    """Writes a crop to `out`, from an image that was reduced by `factor`.

    OpenCV flips 60 times as fast as a copy of a reversed view.
    """
    box = crop.box
    edges = (box.top, box.top + box.height, box.left, box.left + box.width)
    top, bottom, left, right = (round(edge / factor) for edge in edges)
    resize(image[top:bottom, left:right], crop.size_px, out)
    if crop.is_flipped:
        cv2.flip(out, 1, dst=out)


def resize(
    image: UInt8[np.ndarray, "h w c"],
    size_px: int,
    out: UInt8[np.ndarray, "size size c"] | None = None,
) -> UInt8[np.ndarray, "size size c"]:
    """Resizes to a square: halved by means down to twofold, then bilinear.

    Up to a factor of 2 the bilinear kernel still touches every pixel, so nothing
    aliases. OpenCV takes 0.05 ms for means of 2 x 2 pixels and for the bilinear step,
    but 0.5 ms for means of any other size. Those serve images so long that halving
    would blur their shorter side. The last row or column of an odd number is lost.
    """
    while max(image.shape[:2]) > 2 * size_px:
        if min(image.shape[:2]) < 1.5 * size_px:
            return _resize(image, (size_px, size_px), cv2.INTER_AREA, out)
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        even = image[: 2 * rows, : 2 * columns]
        image = _resize(even, (rows, columns), cv2.INTER_AREA)
    return _resize(image, (size_px, size_px), cv2.INTER_LINEAR, out)


def _resize(
    image: UInt8[np.ndarray, "h w c"],
    shape: tuple[int, int],
    method: int,
    out: UInt8[np.ndarray, "rows columns c"] | None = None,
) -> UInt8[np.ndarray, "rows columns c"]:
    return cv2.resize(image, shape[::-1], dst=out, interpolation=method)
