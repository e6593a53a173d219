"""Descriptors: what maps an image to the vector that near-duplicates are found by.

In: RGB pixels. Out: float16 rows of a table of `embedding`, one per row of `pairs`.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import pyarrow as pa

from pipeline.config.curation import EncoderConfig
from pipeline.config.duplicates import (
    Descriptor,
    EncoderDescriptor,
    PerceptualDescriptor,
    TorchDescriptor,
)
from pipeline.storage.tables import to_vector_column

_N_CELLS = 10  # of gradients, along each side
_FLATNESS = 4.0  # as much as a difference of 16 gray levels in one cell
_SMALL_PX = 128  # side of what details are seen in, whatever the size of the picture
_WINDOW = 5  # cells of 1/32 of the side
_N_DETAILS = 256
_MAX_DETAIL_WEIGHT = 0.8  # share of the squared length of the vector


class ImageDescriptor(Protocol):
    """A descriptor that is loaded."""

    @property
    def dim(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to what `describe` wants of one image; in any thread."""

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        """`n` prepared images to float32 `[n, dim]`, of any length but zero."""


def check(descriptor: Descriptor) -> None:
    """Raises ValueError if a package is missing that the descriptor needs."""
    if isinstance(descriptor, TorchDescriptor) and not importlib.util.find_spec(
        "torch"
    ):
        raise ValueError(
            f"descriptor {descriptor.name!r}: expected PyTorch to be installed, the"
            " extra [torch]"
        )


def load(descriptor: Descriptor, encoder: EncoderConfig) -> ImageDescriptor:
    """Raises ValueError if a model cannot be read here."""
    match descriptor:
        case EncoderDescriptor():
            from pipeline.models import encoders

            return EmbeddingImageDescriptor(encoders.load_encoder(encoder))
        case PerceptualDescriptor():
            return Perceptual()
        case TorchDescriptor():
            from pipeline.models import torchscript_descriptor

            return torchscript_descriptor.TorchScriptImageDescriptor.load(descriptor)


class ImageEncoder(Protocol):
    """The part of an encoder that embeds images."""

    @property
    def embedding_dim(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray: ...

    def encode_images(self, images: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class EmbeddingImageDescriptor:
    """The image embedding of an encoder."""

    encoder: ImageEncoder

    @property
    def dim(self) -> int:
        return self.encoder.embedding_dim

    @property
    def batch_size(self) -> int:
        return self.encoder.batch_size

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        return self.encoder.prepare_image(rgb)

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        return self.encoder.encode_images(prepared)


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """Gradients of a gray thumbnail and, for documents, what is particular in them.

    Pages of text, forms, slides and charts resemble one another in a thumbnail: they
    share margins, lines and columns. The more a picture looks like a document, the more
    its `details` weigh, which tell such pictures apart and need copies of the whole
    picture; a photo has gradients alone, which find cropped and turned copies too.

    How both were chosen, and what they find: `docs/near_duplicates.md`.
    """

    batch_size: int = 256

    @property
    def dim(self) -> int:
        return 2 * _N_CELLS**2 + 1 + _N_DETAILS + 1

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """The vector itself: float32 [dim], of length one."""
        gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
        small = _resize(gray, _SMALL_PX)
        weight = _MAX_DETAIL_WEIGHT * likeness_to_document(small)
        parts = (gradients(gray), 1 - weight), (details(small), weight)
        return np.concatenate(
            [
                vector * np.sqrt(share) / np.linalg.norm(vector)
                for vector, share in parts
            ]
        ).astype(np.float32)

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        return prepared


def gradients(gray: np.ndarray, n_cells: int = _N_CELLS) -> np.ndarray:
    """Gradients of a thumbnail, squashed to a square: float32 [2 * n_cells ** 2 + 1].

    Central differences in both directions, each with the root of its size: a strong
    edge counts for more than a weak one, but does not drown all others. What noise
    makes is cut off, and one constant more makes all flat pictures equal.
    """
    levels = _resize(gray, n_cells + 2).astype(np.float32)
    across = levels[1:-1, 2:] - levels[1:-1, :-2]
    down = levels[2:, 1:-1] - levels[:-2, 1:-1]
    both = np.concatenate([across.ravel(), down.ravel()])
    return np.append(_signed_roots(both, noise=2), np.float32(_FLATNESS))


def details(small: np.ndarray) -> np.ndarray:
    """Details of a picture that neither rows nor columns around a cell explain.

    Taking off the means of the rows and of the columns of a window removes margins,
    lines and columns of text, rules and axes, wherever they lie. Sums of four cells
    with random signs keep cosines, within 0.06, with a quarter of the numbers.

    Args:
      small: uint8 [128, 128].

    Returns:
      float32 [257]; the last is a constant, as of `gradients`.
    """
    cells = _halve(_halve(small.astype(np.float32)))
    row, column = _blur(cells, (_WINDOW, 1)), _blur(cells, (1, _WINDOW))
    own = cells - row - column + _blur(cells, (_WINDOW, _WINDOW))
    signed = _signed_roots(own, noise=1).reshape(-1, _N_DETAILS) * _signs()
    return np.append(signed.sum(axis=0), np.float32(_FLATNESS))


def likeness_to_document(small: np.ndarray) -> float:
    """0 for photos to 1 for documents: what is written, drawn or set.

    Such a picture has a ground of one shade (half of its area within five levels) that
    something stands out from, or has more contrast at the width of strokes than in
    shapes 4 to 16 times as wide; both are rare among photos.

    Args:
      small: uint8 [128, 128].
    """
    histogram = cv2.calcHist([small], [0], None, [256], [0, 256])
    ground = np.convolve(histogram.ravel(), np.ones(5)).max() / small.size
    levels = small.astype(np.float32)
    half = _halve(levels)
    quarter = _halve(half)
    shapes = _power(quarter) - _power(_halve(_halve(quarter)))
    strokes = _power(levels) - _power(half)
    is_on_ground = _ramp(ground, 0.5, 0.65) * _ramp(float(np.ptp(small)), 32, 64)
    return max(is_on_ground, _ramp(strokes / (shapes + 4), 0.7, 1.1))


def _power(levels: np.ndarray) -> float:
    """The mean square."""
    return cv2.norm(levels, cv2.NORM_L2SQR) / levels.size


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _signed_roots(values: np.ndarray, noise: float) -> np.ndarray:
    """Roots that keep the sign; differences of `noise` gray levels count as none."""
    return np.sign(values) * np.sqrt(np.maximum(np.abs(values) - noise, 0))


def _resize(gray: np.ndarray, side_px: int) -> np.ndarray:
    return cv2.resize(gray, (side_px, side_px), interpolation=cv2.INTER_AREA)


def _halve(levels: np.ndarray) -> np.ndarray:
    return _resize(levels, len(levels) // 2)


def _blur(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.blur(cells, size, borderType=cv2.BORDER_REFLECT_101)


@functools.cache
def _signs() -> np.ndarray:
    """1 or -1 for each of 1024 cells; the bits of PCG64 never change."""
    words = np.random.PCG64(0).random_raw((_SMALL_PX // 4) ** 2 // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8)).astype(np.float32)
    return 2 * bits.reshape(-1, _N_DETAILS) - 1


class DescriptorTable:
    """Gathers what one descriptor says of the images of a lot, in batches."""

    def __init__(self, image_descriptor: ImageDescriptor) -> None:
        self._image_descriptor = image_descriptor
        self._pending: list[tuple[int, np.ndarray]] = []
        self._row_to_vector: dict[int, np.ndarray] = {}

    def add(self, row: int, prepared: np.ndarray) -> None:
        self._pending.append((row, prepared))
        if len(self._pending) == self._image_descriptor.batch_size:
            self._describe_pending()

    @property
    def is_waiting(self) -> bool:
        """Whether a batch is begun that is not full."""
        return bool(self._pending)

    def table(self, n_rows: int) -> pa.Table:
        """float16 `embedding` of length one; zeros where there is no image."""
        self._describe_pending()
        vectors = np.zeros((n_rows, self._image_descriptor.dim), np.float16)
        for row, vector in self._row_to_vector.items():
            vectors[row] = vector
        return pa.table({"embedding": to_vector_column(vectors)})

    def _describe_pending(self) -> None:
        if self._pending:
            rows, prepared = zip(*self._pending, strict=True)
            vectors = unit_vectors(self._image_descriptor, prepared)
            self._row_to_vector.update(zip(rows, vectors, strict=True))
            self._pending = []


def unit_vectors(
    image_descriptor: ImageDescriptor, prepared: Sequence[np.ndarray]
) -> np.ndarray:
    """Vectors of prepared images, as a table keeps them: float16 [n, dim], unit."""
    vectors = image_descriptor.describe(np.stack(prepared)).astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float16)
