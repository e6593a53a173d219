"""Classes as colors on a photo. Pure functions."""

import colorsys
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from trainer.evals.scores.segmentation import IGNORED

RGB = UInt8[np.ndarray, "h w 3"]

OPACITY = 0.6  # of the color of a class on a photo
_TURN = 0.618034  # of the color wheel, to the next class: neighbors differ most
_SHADES = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.65))  # saturation and value, in turn


class Share(NamedTuple):
    """The share of a picture that a class covers."""

    number: int
    share: float


def palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """Returns one color per class; the color of a number does not depend on `n`."""
    colors = [
        colorsys.hsv_to_rgb(number * _TURN % 1, *_SHADES[number % len(_SHADES)])
        for number in range(n)
    ]
    return np.round(255 * np.array(colors)).astype(np.uint8).reshape(n, 3)


def overlay(
    image: RGB, classes: Int[np.ndarray, "h w"], palette: UInt8[np.ndarray, "n 3"]
) -> RGB:
    """Tints a photo by the classes of its pixels; ignored pixels stay."""
    tinted = (1 - OPACITY) * image + OPACITY * palette[classes]
    is_known = (classes != IGNORED)[..., None]
    return np.where(is_known, np.round(tinted), image).astype(np.uint8)


def class_shares(classes: Int[np.ndarray, "*pixels"]) -> list[Share]:
    """Returns the classes that occur, largest first, then by number."""
    numbers, counts = np.unique(classes[classes != IGNORED], return_counts=True)
    found = [
        Share(int(number), int(count) / classes.size)
        for number, count in zip(numbers, counts, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.share, one.number))
