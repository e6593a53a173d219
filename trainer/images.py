"""Encoded images to pixels, read as the pipeline read them when it scored them.

Pixels come as they are stored: a rotation noted in the file is not applied. Gray,
palette and 16-bit images become 8-bit RGB, CMYK is read as Adobe writes it, and what is
transparent lies on white.
"""

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

RGB = UInt8[np.ndarray, "h w 3"]

# What Pillow raises on damaged files.
_PILLOW_ERRORS = (EOFError, OSError, SyntaxError, ValueError)


def decode(data: bytes, image_format: str) -> RGB:
    """RGB pixels of a "jpeg", "png" or "webp" image.

    Raises ValueError when the image is damaged or cut short.
    """
    if image_format == "jpeg":
        return _decode_jpeg(data)
    try:
        with Image.open(io.BytesIO(data), formats=[image_format]) as image:
            return _pixels(image)
    except _PILLOW_ERRORS as error:
        raise ValueError(f"expected a whole {image_format} image: {error}") from error


def size(data: bytes, image_format: str) -> tuple[int, int]:
    """(height, width) of an image, from its header.

    Raises ValueError when the header is damaged.
    """
    if image_format == "jpeg":
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        return height, width
    try:
        with Image.open(io.BytesIO(data), formats=[image_format]) as image:
            return image.height, image.width
    except _PILLOW_ERRORS as error:
        raise ValueError(f"expected a whole {image_format} image: {error}") from error


def decode_fast(data: bytes, image_format: str, reduction: int) -> tuple[RGB, int]:
    """Pixels for training, and by how much they were reduced.

    JPEGs come at a `reduction`-th of their sides, rounded up, with the fastest
    transform and upsampling: a sixth less time, for errors of one level on average (45
    dB), well below those of the compression. Others come as from `decode`.
    """
    if image_format != "jpeg":
        return decode(data, image_format), 1
    height, width = size(data, image_format)
    options = {
        "min_height": -(-height // reduction),
        "min_width": -(-width // reduction),
        "min_factor": reduction,
    }
    return _decode_jpeg(data, fastdct=True, fastupsample=True, **options), reduction


def _decode_jpeg(data: bytes, **options: Any) -> RGB:
    colorspace = simplejpeg.decode_jpeg_header(data)[2]
    if colorspace not in ("CMYK", "YCCK"):
        return simplejpeg.decode_jpeg(data, "RGB", **options)
    # 255 - ink, as Adobe writes it
    inverted = simplejpeg.decode_jpeg(data, "CMYK", **options)
    product = inverted[..., :3].astype(np.uint16) * inverted[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _pixels(image: Image.Image) -> RGB:
    if image.mode == "I;16":  # Pillow would clip it
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))
