"""Images that Pillow decodes: their pixels as sRGB on white; WebP files, and others."""

import dataclasses
import io
import struct
from typing import Self

import numpy as np
from PIL import Image, WebPImagePlugin

from pipeline.images import exif, icc, signatures
from pipeline.images.interface import ImageError, ImageFile, expect_still

# What Pillow raises on a damaged file, found with mutated files.
ERRORS = (EOFError, OSError, SyntaxError, ValueError, struct.error)
_GRAYS = frozenset({"1", "L", "LA", "I;16", "I;16B"})


def image_error(name: str, error: Exception) -> ImageError:
    """In one line; an error that is one already stays as it is."""
    if isinstance(error, ImageError):
        return error
    return ImageError(f"{name}: {' '.join(str(error).split())}")


def to_rgb(image: Image.Image, profile: bytes, space: icc.Space) -> np.ndarray:
    """uint8 sRGB `[h, w, 3]` on white; of 16 bits the high ones. Raises `ERRORS`.

    `space` is the color space of what is stored, palettes apart.
    """
    convert = icc.conversion(profile, space)
    is_deep = image.mode.startswith("I;16")  # Pillow would clip it
    colors = _high_bytes(image) if is_deep else image
    if not convert.changes:
        rgb = colors.convert("RGB")
    elif space == "L":
        rgb = Image.fromarray(convert(np.asarray(_gray(colors))))
    else:
        rgb = Image.fromarray(convert(np.asarray(colors.convert(space))))
    alpha = _alpha(image)
    if alpha is None:
        return np.asarray(rgb)
    rgb.putalpha(alpha)
    return np.asarray(
        Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    )


def _high_bytes(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _gray(image: Image.Image) -> Image.Image:
    """The gray channel; Pillow makes RGBA of 16-bit gray with alpha."""
    return image.getchannel(0) if image.mode == "RGBA" else image.convert("L")


def _alpha(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I;16"):
        is_opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray(is_opaque.astype(np.uint8) * 255)
    return image.convert("RGBA").getchannel("A")


@dataclasses.dataclass(frozen=True)
class WebP(ImageFile):
    """A still WebP."""

    image: Image.Image

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError if its header is damaged or it is animated."""
        try:
            image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
        except ERRORS as error:
            raise image_error("WebP", error) from error
        expect_still(image.n_frames)
        block = image.info.get("exif")
        return cls(
            format="webp",
            data=data,
            stored_size=(image.height, image.width),
            orientation=exif.orientation(block) if block else 1,
            profile=image.info.get("icc_profile", b""),
            image=image,
        )

    def plain_bytes(self) -> bytes | None:
        convert = icc.conversion(self.profile, "RGB")
        is_turned = self.orientation != 1 or exif.turns(self.image.info.get("xmp", b""))
        if is_turned or convert.changes or not convert.is_usable:
            return None
        if self.image.has_transparency_data:
            return None
        return self.data[: 8 + int.from_bytes(self.data[4:8], "little")]

    def _rgb(self) -> np.ndarray:
        try:
            return to_rgb(self.image, self.profile, "RGB")
        except ERRORS as error:
            raise image_error("WebP", error) from error


@dataclasses.dataclass(frozen=True)
class Other(ImageFile):
    """A still BMP, GIF or TIFF, which no shard holds; Pillow turns TIFFs upright."""

    image: Image.Image

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError if its header is damaged or it has several frames."""
        try:
            image = Image.open(io.BytesIO(data), formats=["BMP", "GIF", "TIFF"])
            expect_still(getattr(image, "n_frames", 1))
        except ERRORS as error:
            raise image_error(signatures.name_of(data), error) from error
        return cls(
            format=str(image.format).lower(),
            data=data,
            stored_size=(image.height, image.width),
            orientation=1,
            profile=image.info.get("icc_profile") or b"",
            image=image,
        )

    def plain_bytes(self) -> None:
        return None

    def _rgb(self) -> np.ndarray:
        mode = self.image.mode
        space: icc.Space = (
            "CMYK" if mode == "CMYK" else "L" if mode in _GRAYS else "RGB"
        )
        try:
            return to_rgb(self.image, self.profile, space)
        except ERRORS as error:
            raise image_error(self.format.upper(), error) from error
