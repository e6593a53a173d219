"""Near-copies of evaluation images: resized, cropped, recompressed, mirrored.

In: a picture of a scene and how to change it. Out: a pair whose alt text is true of it.
"""

import dataclasses
import enum

import cv2
import numpy as np

from pipeline.demo_web import descriptions
from pipeline.demo_web import scene as drawing
from pipeline.demo_web.drawn_pair import (
    QUALITIES,
    DrawnPair,
    Picture,
    Planted,
    Rgb,
    encode,
    size_px,
)

_RECOMPRESSED_QUALITIES = range(25, 41)
_CROPPED_AREA = 0.8


class Transform(enum.StrEnum):
    """How a near-copy of an evaluation image differs from it."""

    RESIZED = "resized"
    CROPPED = "cropped"
    RECOMPRESSED = "recompressed"
    BRIGHTNESS = "brightness"
    MIRRORED = "mirrored"


@dataclasses.dataclass(frozen=True)
class Copy:
    """Which near-copy to make: of which image, how, and with which JPEG quality."""

    key: str
    transform: Transform
    quality_index: int  # equal transforms of one image differ in it, so in their bytes

    @property
    def quality(self) -> int:
        is_low = self.transform is Transform.RECOMPRESSED
        qualities = _RECOMPRESSED_QUALITIES if is_low else QUALITIES
        return qualities[self.quality_index % len(qualities)]


def near_copy(picture: Picture, copy: Copy, rng: np.random.Generator) -> DrawnPair:
    """A changed evaluation image with alt text that is true of it."""
    is_mirrored = copy.transform is Transform.MIRRORED
    scene = drawing.flip(picture.scene) if is_mirrored else picture.scene
    rgb = apply_transform(picture.rgb, copy.transform, rng)
    return DrawnPair(
        image=encode(rgb, "jpg", copy.quality),
        extension="jpg",
        size_px=size_px(rgb),
        alt_text=descriptions.alt_text(scene, rng).encode(),
        scene=scene,
        planted=Planted.NEAR_COPY,
        transform=copy.transform,
        duplicate_of=copy.key,
    )


def apply_transform(rgb: Rgb, transform: Transform, rng: np.random.Generator) -> Rgb:
    """The pixels of a near-copy; those of a recompressed image are the same.

    A crop keeps the center: the frame of a scene is free of objects, and a crop to a
    corner could cut off enough of the largest object to make the alt text wrong.
    """
    match transform:
        case Transform.RESIZED:
            scale = rng.uniform(0.6, 1.5)
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            return cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=method)
        case Transform.CROPPED:
            return _crop(rgb, _CROPPED_AREA)
        case Transform.BRIGHTNESS:
            return cv2.convertScaleAbs(rgb, alpha=rng.uniform(0.75, 1.25))
        case Transform.MIRRORED:
            return cv2.flip(rgb, 1)
        case Transform.RECOMPRESSED:
            return rgb


def _crop(rgb: Rgb, area: float) -> Rgb:
    """The center of an image, of its aspect and a share of its area."""
    height, width = rgb.shape[:2]
    new_height, new_width = round(height * area**0.5), round(width * area**0.5)
    y, x = (height - new_height) // 2, (width - new_width) // 2
    return rgb[y : y + new_height, x : x + new_width]
