"""Captioners: images and a prompt in, one caption an image out.

Images go through the vision tower once (`encode`), whatever the number of prompts
(`caption`). Batches have one shape, so that a caption depends neither on its neighbours
nor on how many images came with it. One object may serve several threads.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import jax
import numpy as np
from flax import nnx
from transformers import AutoTokenizer, PaliGemmaConfig, PreTrainedTokenizerBase

from pipeline.models.batching import check_options, fixed_batches
from pipeline.models.checkpoints import (
    ModelIdentity,
    resolve_checkpoint,
    weights_digest,
)
from pipeline.models.paligemma import Answer, PaliGemma, Prompt, greedy_answer
from pipeline.models.preparation import ImagePreparation
from pipeline.models.weights import load_config, load_module

# Prompts are padded to a multiple of this, so that most share one compiled program.
_PROMPT_STEP = 16


class FinishReason(enum.StrEnum):
    STOP = "stop"  # the captioner ended the text
    LENGTH = "length"  # the text was cut at `max_new_tokens`


@dataclasses.dataclass(frozen=True)
class Caption:
    """`n_tokens` counts the end token; `mean_logprob` is in nats a token, at most 0."""

    text: str
    n_tokens: int
    finish_reason: FinishReason
    mean_logprob: float


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Encoded images on the device: `[batch_size, p, d]` batches, the last padded."""

    batches: tuple[jax.Array, ...]
    n_images: int


class Captioner(Protocol):
    """What the pipeline asks of a captioner."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def image_size_px(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 `[h, w, 3]` to uint8 `[image_size_px, image_size_px, 3]`."""

    def encode(self, images: np.ndarray) -> ImageFeatures:
        """uint8 `[n, s, s, 3]` prepared images to features for `caption`."""

    def caption(
        self, features: ImageFeatures, prompt: str, max_new_tokens: int
    ) -> list[Caption]:
        """One caption an image, in order."""


@dataclasses.dataclass(frozen=True, eq=False)
class PaliGemmaCaptioner:
    """PaliGemma 1 or 2 on JAX's default device, greedy; made by `load`."""

    identity: ModelIdentity
    batch_size: int
    preparation: ImagePreparation
    tokens: "PromptTokens"
    encode_batch: Callable[[np.ndarray], jax.Array]
    answer_batch: Callable[..., Answer]

    @classmethod
    def load(cls, checkpoint: str, batch_size: int, dtype: str) -> Self:
        """Loads a folder or a Hugging Face id.

        Args:
          dtype: of weights and computation, "float32" or "bfloat16".

        Raises:
          ValueError: if it is not a PaliGemma checkpoint that can be read here.
        """
        check_options(batch_size, dtype)
        folder = resolve_checkpoint(checkpoint)
        config = load_config(folder, PaliGemmaConfig)
        preparation = ImagePreparation.load(folder)
        preparation.check_model(config.vision_config)
        tokens = PromptTokens.load(folder)
        graph, params = load_module(
            lambda rngs: PaliGemma(config, rngs=rngs, dtype=dtype), folder, dtype
        )
        encode = jax.jit(functools.partial(_encode, graph, preparation))
        answer = jax.jit(
            functools.partial(_answer, graph, tokens.end_id),
            static_argnames="max_new_tokens",
        )
        return cls(
            identity=ModelIdentity(checkpoint, weights_digest(folder), dtype),
            batch_size=batch_size,
            preparation=preparation,
            tokens=tokens,
            encode_batch=functools.partial(encode, params),
            answer_batch=functools.partial(answer, params),
        )

    @property
    def image_size_px(self) -> int:
        return self.preparation.size_px

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return self.preparation.resized(rgb)

    def encode(self, images: np.ndarray) -> ImageFeatures:
        self.preparation.check_batch(images)
        batches = map(self.encode_batch, fixed_batches(images, self.batch_size))
        return ImageFeatures(tuple(batches), len(images))

    def caption(
        self, features: ImageFeatures, prompt: str, max_new_tokens: int
    ) -> list[Caption]:
        """Raises ValueError if `max_new_tokens` leaves no room for a caption."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
        rows = self.tokens.repeated_prompt(prompt, self.batch_size)
        numbers = np.arange(self.batch_size * len(features.batches))
        is_image = numbers.reshape(-1, self.batch_size) < features.n_images
        answers = [
            self.answer_batch(batch, rows, is_row, max_new_tokens=max_new_tokens)
            for batch, is_row in zip(features.batches, is_image, strict=True)
        ]
        written = [row for a in jax.device_get(answers) for row in zip(*a, strict=True)]
        return [self.tokens.caption(*row) for row in written[: features.n_images]]


def _encode(
    graph: nnx.GraphDef[PaliGemma],
    preparation: ImagePreparation,
    params: nnx.State,
    images: jax.Array,
) -> jax.Array:
    return nnx.merge(graph, params).image_features(preparation.normalised(images))


def _answer(
    graph: nnx.GraphDef[PaliGemma],
    end_id: int,
    params: nnx.State,
    features: jax.Array,
    prompt: Prompt,
    is_row: jax.Array,
    *,
    max_new_tokens: int,
) -> Answer:
    return greedy_answer(
        nnx.merge(graph, params),
        features,
        prompt,
        is_row,
        end_id=end_id,
        max_new_tokens=max_new_tokens,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokens:
    """Prompts to ids, and answers to text."""

    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(AutoTokenizer.from_pretrained(folder))

    @property
    def end_id(self) -> int:
        return self.tokenizer.eos_token_id

    def ids(self, prompt: str) -> list[int]:
        """`<bos>`, the prompt, and the newline, which is tokenised apart."""
        words, newline = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, "\n")
        )
        return [self.tokenizer.bos_token_id, *words, *newline]

    def repeated_prompt(self, prompt: str, n_rows: int) -> Prompt:
        """The same prompt in every row."""
        ids = self.ids(prompt)
        padded = np.zeros(-(-len(ids) // _PROMPT_STEP) * _PROMPT_STEP, np.int32)
        padded[: len(ids)] = ids
        return Prompt(np.tile(padded, (n_rows, 1)), np.full(n_rows, len(ids), np.int32))

    def caption(
        self, ids: np.ndarray, n_tokens: int, logprob: float, has_ended: bool
    ) -> Caption:
        """One row of an `Answer`."""
        words = ids[: n_tokens - has_ended]
        return Caption(
            text=self.tokenizer.decode(words, skip_special_tokens=True),
            n_tokens=int(n_tokens),
            finish_reason=FinishReason.STOP if has_ended else FinishReason.LENGTH,
            mean_logprob=float(logprob) / int(n_tokens),
        )
