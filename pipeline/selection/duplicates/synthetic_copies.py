"""Near-copies of a photo as the web makes them, to audit what a run would find.

In: RGB pixels. Out: RGB pixels. Nothing is left to chance.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import simplejpeg

_JPEG_QUALITY = 30
_TEXT = "SALE 50%"
_BORDER = 1 / 20  # of the short side, on every side
_BLUR = 1 / 100  # of the short side: standard deviation
_WARMER = np.array([1.3, 1.1, 0.85])  # factors of red, green and blue
_DEGREES = 5


def crop(rgb: np.ndarray, area: float) -> np.ndarray:
    """The middle of a picture: that share of its area."""
    height, width = (max(1, round(n * area**0.5)) for n in rgb.shape[:2])
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return rgb[top : top + height, left : left + width]


def halve(rgb: np.ndarray) -> np.ndarray:
    size_px = (max(1, rgb.shape[1] // 2), max(1, rgb.shape[0] // 2))
    return cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)


def recompress(rgb: np.ndarray) -> np.ndarray:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), _JPEG_QUALITY)
    return simplejpeg.decode_jpeg(data)


def blur(rgb: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(rgb, (0, 0), max(0.5, _BLUR * min(rgb.shape[:2])))


def warm_colors(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb * _WARMER, 0, 255).astype(np.uint8)


def mirror(rgb: np.ndarray) -> np.ndarray:
    return cv2.flip(rgb, 1)


def rotate(rgb: np.ndarray) -> np.ndarray:
    """Turned about the middle; the corners that come in are black."""
    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), _DEGREES, 1)
    return cv2.warpAffine(rgb, matrix, (width, height))


def add_text(rgb: np.ndarray) -> np.ndarray:
    """White letters over most of the width."""
    height, width = rgb.shape[:2]
    thickness = max(1, width // 60)
    font = cv2.FONT_HERSHEY_SIMPLEX
    place = (width // 10, height // 2)
    white = (255, 255, 255)
    return cv2.putText(rgb.copy(), _TEXT, place, font, width / 220, white, thickness)


def add_border(rgb: np.ndarray) -> np.ndarray:
    """A white frame."""
    side = max(1, round(_BORDER * min(rgb.shape[:2])))
    sides = (side, side, side, side)
    return cv2.copyMakeBorder(rgb, *sides, cv2.BORDER_CONSTANT, value=(255,) * 3)


NAME_TO_COPY: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "unchanged": lambda rgb: rgb,
    "half size": halve,
    "crop 90 %": lambda rgb: crop(rgb, 0.9),
    "crop 80 %": lambda rgb: crop(rgb, 0.8),
    "crop 60 %": lambda rgb: crop(rgb, 0.6),
    f"JPEG {_JPEG_QUALITY}": recompress,
    "blur": blur,
    "color": warm_colors,
    "mirror": mirror,
    f"rotated {_DEGREES} degrees": rotate,
    "text": add_text,
    "border": add_border,
}
