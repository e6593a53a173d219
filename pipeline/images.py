"""Encoded images to pixels, under limits.

In: the bytes of a JPEG, PNG or WebP file. Out: uint8 RGB and the format, or an
`ImageError` of one line. What decoders like to patch up (a truncated file, a damaged
block) is an error, not a grey band. Pixels come as they are stored: EXIF orientation
is ignored, as img2dataset does, because a training record keeps the bytes and not
every reader of them would turn the image; so the trainer sees what was scored.
Colour profiles are ignored too.
"""

import dataclasses
import io

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin, WebPImagePlugin

from pipeline.config import Limits

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"  # never part of compressed data
_MAX_JPEG_SCANS = 100  # libjpeg writes 10; each is a pass over all blocks
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"

# What Pillow raises on a damaged file, found with mutated files.
_PILLOW_ERRORS = (EOFError, OSError, SyntaxError, ValueError)


class ImageError(ValueError):
    """An image that cannot be read; the message is one line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """The pixels of one image."""

    rgb: np.ndarray  # uint8 [h, w, 3]
    format: str  # "jpeg", "png" or "webp"


def decode(data: bytes, limits: Limits) -> Decoded:
    """Decodes one still image; its size is checked before any pixel is decoded.

    Gray, palette and 16-bit images become 8-bit RGB, CMYK is read as Adobe writes it,
    and transparent images are laid on white.

    Raises:
      ImageError: if the image is damaged, incomplete, animated or above `limits`.
    """
    _check(len(data), limits.max_image_bytes, "max_image_bytes")
    if data.startswith(_JPEG_START):
        return Decoded(_decode_jpeg(data, limits), "jpeg")
    if data.startswith(_PNG_START):
        return Decoded(_decode_png(data, limits), "png")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Decoded(_decode_webp(data, limits), "webp")
    raise ImageError(f"starts with {data[:8]!r}: expected a JPEG, PNG or WebP image")


def _decode_jpeg(data: bytes, limits: Limits) -> np.ndarray:
    """Decodes with libjpeg-turbo, whose warnings are errors here."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check(int(width) * int(height), limits.max_pixels, "max_pixels")
        _expect_few_scans(data)
        if colorspace in ("CMYK", "YCCK"):
            return _adobe_cmyk_to_rgb(simplejpeg.decode_jpeg(data, "CMYK"))
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        raise _image_error("JPEG", error) from error


def _expect_few_scans(data: bytes) -> None:
    """A file of 200 kB can hold so many scans that it takes minutes to decode."""
    n_scans = data.count(_JPEG_SCAN)
    if n_scans > _MAX_JPEG_SCANS:
        raise ImageError(f"{n_scans} scans: expected at most {_MAX_JPEG_SCANS}")


def _adobe_cmyk_to_rgb(inverted: np.ndarray) -> np.ndarray:
    """`inverted` holds 255 - ink, as all CMYK JPEGs in use do."""
    product = inverted[..., :3].astype(np.uint16) * inverted[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _decode_png(data: bytes, limits: Limits) -> np.ndarray:
    if _PNG_END not in data:  # Pillow accepts a file without its last 20 bytes
        raise ImageError("PNG: truncated, its end is missing")
    try:
        return _pixels(PngImagePlugin.PngImageFile(io.BytesIO(data)), limits)
    except _PILLOW_ERRORS as error:
        raise _image_error("PNG", error) from error


def _decode_webp(data: bytes, limits: Limits) -> np.ndarray:
    try:
        return _pixels(WebPImagePlugin.WebPImageFile(io.BytesIO(data)), limits)
    except _PILLOW_ERRORS as error:
        raise _image_error("WebP", error) from error


def _pixels(
    image: PngImagePlugin.PngImageFile | WebPImagePlugin.WebPImageFile, limits: Limits
) -> np.ndarray:
    _check(image.width * image.height, limits.max_pixels, "max_pixels")
    if image.n_frames != 1:
        raise ImageError(f"{image.n_frames} frames: expected a still image")
    if image.mode == "P" and image.palette is None:
        raise ImageError("PNG: its palette is missing")
    if image.mode == "I;16":  # Pillow would clip; of 16-bit RGB it keeps the high byte
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _on_white(image: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _check(value: int, bound: int, name: str) -> None:
    if value > bound:
        unit = name.removeprefix("max_").replace("_", " ")
        raise ImageError(f"{value} {unit}: expected at most {name}={bound}")


def _image_error(format_name: str, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    return ImageError(f"{format_name}: {' '.join(str(error).split())}")
