"""Encoded images to pixels as people see them, under limits: the one decoder.

In: the bytes of a file. Out: upright uint8 sRGB and the format, or an `ImageError` of
one line. EXIF orientation is applied, colors are converted by the file's ICC profile,
inks become light, and transparent images lie on white. What decoders like to patch up
(a truncated file, a damaged block) is an error, not a gray band; what they merely
complain of is none. The trainer imports this module too.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.images import signatures
from pipeline.images.interface import ImageError, ImageFile
from pipeline.images.jpeg import Jpeg
from pipeline.images.limits import DEFAULT_LIMITS, Limits
from pipeline.images.pillow import Other, WebP
from pipeline.images.png import Png

__all__ = ["FORMATS", "STORED", "Decoded", "ImageError", "decode", "open_image"]

STORED = ("jpeg", "png", "webp")  # formats that source shards and exports may hold
FORMATS = (*STORED, "bmp", "gif", "tiff")

_NAME_TO_OPEN: Mapping[str, Callable[[bytes], ImageFile]] = {
    "JPEG": Jpeg.of,
    "PNG": Png.of,
    "WebP": WebP.of,
    **dict.fromkeys(("BMP", "GIF", "TIFF"), Other.of),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """The pixels of one image."""

    rgb: np.ndarray  # uint8 [h, w, 3]
    format: str  # one of FORMATS


def decode(
    data: bytes, limits: Limits = DEFAULT_LIMITS, formats: Sequence[str] = STORED
) -> Decoded:
    """Decodes one still image; its size is checked before any pixel is decoded.

    Gray, palette and 16-bit images become 8-bit RGB. An orientation or a profile that
    cannot be read is ignored.

    Args:
      data: the bytes of an image file.
      limits: bounds on the file in bytes and on the image in pixels.
      formats: names out of `FORMATS`.

    Raises:
      ImageError: if the image is damaged, incomplete, animated, above `limits` or not
        of one of `formats`.

    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 2), "red").save(file, "PNG")
    >>> decoded = decode(file.getvalue())
    >>> decoded.format, decoded.rgb.shape, decoded.rgb[0, 0].tolist()
    ('png', (2, 4, 3), [255, 0, 0])
    >>> decode(b"<html>404</html>")
    Traceback (most recent call last):
    pipeline.images.interface.ImageError: HTML page: expected a JPEG, PNG or WebP image
    """
    image = open_image(data, limits, formats)
    return Decoded(image.decode(), image.format)


def open_image(
    data: bytes, limits: Limits = DEFAULT_LIMITS, formats: Sequence[str] = STORED
) -> ImageFile:
    """Reads and checks the header of an image. Raises ImageError as `decode` does."""
    _check(len(data), limits.max_image_bytes, "max_image_bytes")
    name = signatures.name_of(data)
    if name.lower() not in formats:
        raise ImageError(
            f"{signatures.describe(data)}: expected {_list_formats(formats)}"
        )
    image = _NAME_TO_OPEN[name](data)
    height, width = image.stored_size
    _check(height * width, limits.max_pixels, "max_pixels")
    return image


def _check(value: int, bound: int, name: str) -> None:
    if value > bound:
        unit = name.removeprefix("max_").replace("_", " ")
        raise ImageError(f"{value} {unit}: expected at most {name}={bound}")


def _list_formats(formats: Sequence[str]) -> str:
    """Names formats as in "a JPEG, PNG or WebP image"."""
    names = [name for name in _NAME_TO_OPEN if name.lower() in formats]
    return (
        "a " + " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) + " image"
    )
