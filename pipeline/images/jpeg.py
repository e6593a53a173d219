"""JPEG files: the pixels, decoded by libjpeg-turbo.

Its warnings are errors here, since most of them mean pixels that were made up. Slips
that cost no pixel are mended first, and bytes behind the last block are left out.
"""

import dataclasses
import functools
import io
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from pipeline.images import exif, icc
from pipeline.images.interface import ImageFile, upright
from pipeline.images.pillow import ERRORS, image_error
from pipeline.images.segments import Segments

_COMPONENTS_TO_SPACE: dict[int, icc.Space] = {1: "L", 3: "RGB", 4: "CMYK"}


@dataclasses.dataclass(frozen=True)
class Jpeg(ImageFile):
    """A JPEG whose end was found."""

    segments: Segments

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Raises ImageError if there is no whole image, or too many scans."""
        segments = Segments.of(data)
        block = segments.exif
        return cls(
            format="jpeg",
            data=data,
            stored_size=(segments.frame.height, segments.frame.width),
            orientation=1 if block is None else exif.orientation(block),
            profile=segments.profile,
            segments=segments,
        )

    def decode_fast(self, reduction: int) -> tuple[np.ndarray, int]:
        """Pixels at a `reduction`-th of both sides, rounded up.

        They come with the fastest transform and upsampling: a sixth less time, for
        errors of one level on average (45 dB), well below those of the compression.
        """
        height, width = self.stored_size
        rgb = self._rgb(
            fastdct=True,
            fastupsample=True,
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
        factor = 1 if rgb.shape[:2] == self.stored_size else reduction
        return upright(rgb, self.orientation), factor

    def plain_bytes(self) -> bytes | None:
        if self.orientation > 1 or self._convert.changes or self._space == "CMYK":
            return None
        segments = self.segments
        if segments.has_fill and not self._is_decodable:
            return segments.rewritten(with_fill=False)
        if self._is_metadata_plain and not segments.is_followed:
            return self._mended
        return segments.rewritten()

    @property
    def _space(self) -> icc.Space:
        return _COMPONENTS_TO_SPACE.get(self.segments.frame.n_components, "RGB")

    @property
    def _convert(self) -> icc.Conversion:
        return icc.conversion(self.profile, self._space)

    @property
    def _is_metadata_plain(self) -> bool:
        segments = self.segments
        is_upright = self.orientation == 1 and not exif.turns(segments.xmp)
        return is_upright and self._convert.is_usable and segments.is_readable_by_all

    @property
    def _is_decodable(self) -> bool:
        try:
            self._decode(self._mended, {})
        except ValueError:
            return False
        return True

    @functools.cached_property
    def _mended(self) -> bytes:
        segments = self.segments
        if segments.have_slips(segments.head) or segments.have_slips(segments.found):
            return segments.rewritten()
        return self.data

    def _rgb(self, **options: Any) -> np.ndarray:
        failure: Exception | None = None
        for data in self._attempts():
            try:
                return self._decode(data, options)
            except ValueError as error:
                failure = error
                if "subsampling level" in str(error):  # TurboJPEG knows the usual ones
                    return self._decode_by_pillow()
        assert failure is not None  # something was tried
        raise image_error("JPEG", failure) from failure

    def _attempts(self) -> Iterator[bytes]:
        """The file as it is, if it looks well, and what it may be mended to."""
        segments = self.segments
        if not segments.have_slips(segments.head):
            yield self.data
        if segments.have_slips(segments.found) or self.profile == icc.UNREADABLE:
            yield segments.rewritten()
        if segments.has_fill:
            yield segments.rewritten(with_fill=False)

    def _decode(self, data: bytes, options: dict[str, Any]) -> np.ndarray:
        """Raises ValueError if libjpeg-turbo warns."""
        if self._space == "CMYK":
            inks = simplejpeg.decode_jpeg(data, "CMYK", **options)
            return self._convert_inks(~inks if self.segments.is_adobe else inks)
        convert = self._convert
        if convert.changes and self._space == "L":
            return convert(simplejpeg.decode_jpeg(data, "GRAY", **options)[..., 0])
        rgb = simplejpeg.decode_jpeg(data, "RGB", **options)
        return convert(rgb) if convert.changes else rgb

    def _decode_by_pillow(self) -> np.ndarray:
        """Any subsampling; damage between the first and the last block goes unseen."""
        try:
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(self._mended))
            if image.mode == "CMYK":
                inverted = np.asarray(image)  # whatever the file says
                return self._convert_inks(
                    inverted if self.segments.is_adobe else ~inverted
                )
            rgb = np.asarray(image.convert("RGB"))
        except ERRORS as error:
            raise image_error("JPEG", error) from error
        return self._convert(rgb) if self._convert.changes else rgb

    def _convert_inks(self, inks: np.ndarray) -> np.ndarray:
        """Converts by the profile, or else as browsers and libjpeg-turbo do."""
        if self._convert.changes:
            return self._convert(inks)
        light = ~inks
        product = light[..., :3].astype(np.uint16) * light[..., 3:]
        return ((product + 127) // 255).astype(np.uint8)
