"""PNG files: the pixels, decoded by Pillow.

Pillow is shown the chunks that pixels are made of and no others: it would refuse a file
for the size of a text or the checksum of a date. Of the chunks about color only the
ICC profile counts; gAMA, cHRM and cICP do not, nor do they for Pillow, OpenCV and
TensorFlow.
"""

import dataclasses
import io
from typing import Self

import numpy as np
from PIL import PngImagePlugin

from pipeline.images import exif, icc, pillow
from pipeline.images.chunks import Chunks
from pipeline.images.interface import ImageError, ImageFile, expect_still

_GRAYS = (0, 4)  # types of color, without and with alpha
_ALPHA = 4


@dataclasses.dataclass(frozen=True)
class Png(ImageFile):
    """A still PNG whose end was found."""

    chunks: Chunks

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError if the file is cut short or animated."""
        chunks = Chunks.of(data)
        expect_still(chunks.n_frames)
        block = chunks.exif
        return cls(
            format="png",
            data=data,
            stored_size=(chunks.header.height, chunks.header.width),
            orientation=1 if block is None else exif.orientation(block),
            profile=chunks.profile,
            chunks=chunks,
        )

    def plain_bytes(self) -> bytes | None:
        header, convert = self.chunks.header, icc.conversion(self.profile, self._space)
        has_alpha = header.color_type & _ALPHA or self.chunks.has_transparency
        if self.orientation > 1 or convert.changes or has_alpha or header.bit_depth > 8:
            return None
        return self.chunks.harmless if convert.is_usable else self.chunks.of_pixels

    @property
    def _space(self) -> icc.Space:
        return "L" if self.chunks.header.color_type in _GRAYS else "RGB"

    def _rgb(self) -> np.ndarray:
        try:
            image = PngImagePlugin.PngImageFile(io.BytesIO(self.chunks.of_pixels))
            if image.mode == "P" and image.palette is None:
                raise ImageError("PNG: its palette is missing")
            return pillow.to_rgb(image, self.profile, self._space)
        except pillow.ERRORS as error:
            raise pillow.image_error("PNG", error) from error
