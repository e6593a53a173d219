"""ICC profiles: colors of a profile to sRGB, with Little CMS.

A profile that cannot be read, or is of another color space than the pixels, changes
nothing, and so does one that says what sRGB says within `_TOLERANCE` levels.
"""

import dataclasses
import functools
import io
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 << 20  # those of printing presses have up to 3 MB
Space = Literal["L", "RGB", "CMYK"]  # as Pillow names them

_SIGNATURES: dict[Space, bytes] = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
_HEADER_BYTES = 128
_TOLERANCE = 2
_STEPS = 9  # an axis of the colors that a profile is tried with


@dataclasses.dataclass(frozen=True)
class Conversion:
    """From the colors of a profile to sRGB."""

    is_usable: bool  # the profile could be read
    transform: ImageCms.ImageCmsTransform | None = None  # None: nothing changes

    @property
    def changes(self) -> bool:
        return self.transform is not None

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `[h, w]` gray, `[h, w, 3]` RGB or `[h, w, 4]` inks to `[h, w, 3]`."""
        assert self.transform is not None
        if pixels.ndim == 2:
            return self._of_all_grays[pixels]
        mode = "RGB" if pixels.shape[2] == 3 else "CMYK"
        return _apply(self.transform, pixels, mode)

    @functools.cached_property
    def _of_all_grays(self) -> np.ndarray:
        assert self.transform is not None
        ramp = np.arange(256, dtype=np.uint8)[None]
        return _apply(self.transform, ramp, "L")[0]


UNREADABLE = b"?"  # stands for a profile of which parts are missing
NONE = Conversion(is_usable=True)
_UNUSABLE = Conversion(is_usable=False)


def conversion(profile: bytes, space: Space) -> Conversion:
    """The conversion by a profile, which is empty if there is none."""
    return _conversion(profile, space) if profile else NONE


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes, space: Space) -> Conversion:
    signature = _SIGNATURES[space]
    if not _HEADER_BYTES < len(profile) <= MAX_PROFILE_BYTES:
        return _UNUSABLE
    if profile[36:40] != b"acsp" or profile[16:20] != signature:
        return _UNUSABLE
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), space, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _UNUSABLE
    found = Conversion(is_usable=True, transform=transform)
    return NONE if space != "CMYK" and _is_srgb(found, space) else found


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_srgb(found: Conversion, space: Space) -> bool:
    if space == "L":
        pixels = np.arange(256, dtype=np.uint8)[None]
        same = np.repeat(pixels[..., None], 3, axis=2)
    else:
        axis = np.linspace(0, 255, _STEPS).astype(np.uint8)
        pixels = same = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(1, -1, 3)
    return bool(np.abs(found(pixels).astype(int) - same).max() <= _TOLERANCE)


def _apply(
    transform: ImageCms.ImageCmsTransform, pixels: np.ndarray, mode: str
) -> np.ndarray:
    image = Image.fromarray(pixels) if mode != "CMYK" else _inks(pixels)
    return np.asarray(ImageCms.applyTransform(image, transform))


def _inks(pixels: np.ndarray) -> Image.Image:
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels).tobytes()
    return Image.frombytes("CMYK", (width, height), data)
