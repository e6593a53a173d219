"""The interface of all formats: a file whose header was read, and its pixels."""

import abc
import dataclasses

import cv2
import numpy as np


class ImageError(ValueError):
    """An image that cannot be read; the message is one line."""


def expect_still(n_frames: int) -> None:
    """Raises ImageError unless there is one frame."""
    if n_frames != 1:
        raise ImageError(f"{n_frames} frames: expected a still image")


# EXIF orientation to how OpenCV turns stored pixels upright.
_MIRROR = {2: 1, 3: -1, 4: 0}  # codes of cv2.flip
_TURN = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclasses.dataclass(frozen=True)
class ImageFile(abc.ABC):
    """One still image whose pixels are not decoded yet.

    `stored_size` is (height, width) as the pixels lie in the file. `orientation` is
    EXIF's, 1 to 8; 0 where the file has one that cannot be read, which counts as 1.
    """

    format: str  # "jpeg", "png", "webp" ...
    data: bytes
    stored_size: tuple[int, int]
    orientation: int
    profile: bytes  # ICC; empty if there is none

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)

    def decode(self) -> np.ndarray:
        """uint8 sRGB `[h, w, 3]`, upright, on white. Raises ImageError if damaged."""
        return upright(self._rgb(), self.orientation)

    def decode_fast(self, reduction: int) -> tuple[np.ndarray, int]:
        """Pixels for training, and by how much their sides were divided."""
        del reduction  # only JPEGs can be decoded smaller
        return self.decode(), 1

    @abc.abstractmethod
    def _rgb(self) -> np.ndarray:
        """uint8 sRGB as it is stored, on white."""

    @abc.abstractmethod
    def plain_bytes(self) -> bytes | None:
        """The file as all usual decoders read it equally and without complaint.

        It is `data` where that is so already, or a file of the same pixels that lacks
        what they stumble over; None where the pixels themselves are not plain.
        """


def upright(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels as an EXIF orientation says."""
    if orientation in _MIRROR:
        return cv2.flip(rgb, _MIRROR[orientation])
    if orientation in _TURN:
        return cv2.rotate(rgb, _TURN[orientation])
    if orientation == 5:
        return cv2.transpose(rgb)
    if orientation == 7:
        return cv2.flip(cv2.transpose(rgb), -1)
    return rgb
