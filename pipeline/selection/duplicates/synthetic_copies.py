"""Near-copies of a photo of the kinds found on the web, for an audit of bounds.

In: RGB pixels, uint8 [h, w, 3]. Out: RGB pixels of a copy. Nothing is random.
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
    """The center of an image, with a share of its area in (0, 1]."""
    height, width = (max(1, round(n * area**0.5)) for n in rgb.shape[:2])
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return rgb[top : top + height, left : left + width]


def halve(rgb: np.ndarray) -> np.ndarray:
    """Halves both sides."""
    size_px = (max(1, rgb.shape[1] // 2), max(1, rgb.shape[0] // 2))
    return cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)


def recompress(rgb: np.ndarray) -> np.ndarray:
    """Encodes as a JPEG of low quality, and decodes it."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), _JPEG_QUALITY)
    return simplejpeg.decode_jpeg(data)


def blur(rgb: np.ndarray) -> np.ndarray:
    """Blurs with a Gaussian of 1 % of the short side."""
    return cv2.GaussianBlur(rgb, (0, 0), max(0.5, _BLUR * min(rgb.shape[:2])))


def warm_colors(rgb: np.ndarray) -> np.ndarray:
    """Shifts colors towards red."""
    return np.clip(rgb * _WARMER, 0, 255).astype(np.uint8)


def mirror(rgb: np.ndarray) -> np.ndarray:
    """Swaps left and right."""
    return cv2.flip(rgb, 1)


def rotate(rgb: np.ndarray) -> np.ndarray:
    """Rotates about the center; the corners become black."""
    height, width = rgb.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), _DEGREES, 1)
    return cv2.warpAffine(rgb, matrix, (width, height))


def add_text(rgb: np.ndarray) -> np.ndarray:
    """Writes white letters over most of the width."""
    height, width = rgb.shape[:2]
    thickness = max(1, width // 60)
    font = cv2.FONT_HERSHEY_SIMPLEX
    place = (width // 10, height // 2)
    white = (255, 255, 255)
    return cv2.putText(rgb.copy(), _TEXT, place, font, width / 220, white, thickness)


def add_border(rgb: np.ndarray) -> np.ndarray:
    """Adds a white frame."""
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
