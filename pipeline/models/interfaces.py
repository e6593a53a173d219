"""The interfaces of models and their answers; imports no model.

JAX and transformers take seconds to import, and most commands run no model.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from pipeline.config.captions import Granularity
from pipeline.models.checkpoints import ModelIdentity
from pipeline.records import FinishReason


class Encoder(Protocol):
    """The interface of an encoder."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def image_size_px(self) -> int: ...

    @property
    def embedding_dim(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to uint8 `[image_size_px, image_size_px, 3]`."""

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[n, s, s, 3]` prepared images to float32 `[n, d]` unit rows."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """`n` texts to float32 `[n, d]` unit rows."""


@dataclasses.dataclass(frozen=True)
class Caption:
    """`n_tokens` counts the end token; `mean_logprob` is in nats a token, at most 0.

    `finish_reason` ERROR has the error as its text.
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason
    mean_logprob: float

    @classmethod
    def failed(cls, error: str) -> Self:
        return cls(error, 0, FinishReason.ERROR, float("nan"))

    @property
    def is_made(self) -> bool:
        return self.finish_reason != FinishReason.ERROR


class ServiceError(RuntimeError):
    """A service gave no answer, which says nothing about what it was asked."""


class Captioner(Protocol):
    """The interface of a captioner."""

    @property
    def batch_size(self) -> int:
        """How many images it works on at a time."""

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to what `encode` wants of one image."""

    def encode(self, images: Sequence[np.ndarray]) -> Any:
        """Prepared images to features for `caption`."""

    def caption(
        self,
        features: Any,
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> Sequence[tuple[Caption, ...] | ServiceError]:
        """Captions of every image for its prompt, `granularity.decoding.n_samples`.

        A ServiceError in their place leaves the image without a row and stops the run,
        which asks again when it goes on; the other answers are kept.

        Args:
          keys: uint32 `[n_images, n_samples, 2]`; all randomness depends on them.
        """
