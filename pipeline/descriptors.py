"""Descriptors: what maps an image to the vector that near-duplicates are found by.

In: RGB pixels. Out: float16 rows of a table of `embedding`, one a row of `pairs`.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import pyarrow as pa

from pipeline.config import EncoderConfig
from pipeline.near_config import (
    Descriptor,
    EncoderDescriptor,
    PerceptualDescriptor,
    TorchDescriptor,
)


class Describer(Protocol):
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


def load(descriptor: Descriptor, encoder: EncoderConfig) -> Describer:
    """Raises ValueError if a model cannot be read here."""
    match descriptor:
        case EncoderDescriptor():
            from pipeline.models import encoders

            return EmbeddingDescriber(encoders.load_encoder(encoder))
        case PerceptualDescriptor():
            return Gradients()
        case TorchDescriptor():
            from pipeline.models import torchscript

            return torchscript.TorchScriptDescriber.load(descriptor)


class ImageEncoder(Protocol):
    """The part of an encoder that embeds images."""

    @property
    def embedding_dim(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray: ...

    def encode_images(self, images: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class EmbeddingDescriber:
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
class Gradients:
    """Gradients of a grey thumbnail, squashed to a square.

    Central differences in both directions, each with the root of its size: a strong
    edge counts for more than a weak one, but does not drown all others. What noise
    makes is cut off, and one constant more makes all flat pictures alike.

    Chosen among DCT coefficients, their signs, difference hashes and histograms of
    oriented gradients: `docs/near_duplicates.md`.
    """

    n_cells: int = 10  # along each side
    n_noise_levels: int = 2  # of grey: differences up to that count as none
    flatness: float = 4.0  # as much as a difference of 16 grey levels in one cell
    batch_size: int = 256

    @property
    def dim(self) -> int:
        return 2 * self.n_cells**2 + 1

    def prepare(self, rgb: np.ndarray) -> np.ndarray:
        """The vector itself: float32 [dim]."""
        side = self.n_cells + 2
        grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
        thumbnail = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)
        levels = thumbnail.astype(np.float32)
        across = levels[1:-1, 2:] - levels[1:-1, :-2]
        down = levels[2:, 1:-1] - levels[:-2, 1:-1]
        both = np.concatenate([across.ravel(), down.ravel()])
        size = np.maximum(np.abs(both) - self.n_noise_levels, 0)
        rooted = np.sign(both) * np.sqrt(size)
        return np.append(rooted, np.float32(self.flatness))

    def describe(self, prepared: np.ndarray) -> np.ndarray:
        return prepared


class Descriptions:
    """Gathers what one descriptor says of the images of a unit, in batches."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._pending: list[tuple[int, np.ndarray]] = []
        self._row_to_vector: dict[int, np.ndarray] = {}

    def add(self, row: int, prepared: np.ndarray) -> None:
        self._pending.append((row, prepared))
        if len(self._pending) == self._describer.batch_size:
            self._describe_pending()

    def table(self, n_rows: int) -> pa.Table:
        """float16 `embedding` of length one; zeros where there is no image."""
        self._describe_pending()
        vectors = np.zeros((n_rows, self._describer.dim), np.float16)
        for row, vector in self._row_to_vector.items():
            vectors[row] = vector
        flat = pa.array(vectors.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, self._describer.dim)
        return pa.table({"embedding": column})

    def _describe_pending(self) -> None:
        if self._pending:
            rows, prepared = zip(*self._pending, strict=True)
            vectors = unit_vectors(self._describer, prepared)
            self._row_to_vector.update(zip(rows, vectors, strict=True))
            self._pending = []


def unit_vectors(describer: Describer, prepared: Sequence[np.ndarray]) -> np.ndarray:
    """What a table keeps of prepared images: float16 [n, dim], of length one."""
    vectors = describer.describe(np.stack(prepared)).astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float16)
