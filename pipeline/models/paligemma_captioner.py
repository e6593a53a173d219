"""Captioners: images and prompts in, captions out.

Images go through the vision tower once (`encode`), whatever the number of prompts
(`caption`). Batches have one shape, and prompts of one length share a program, so that
a caption depends neither on its neighbors nor on how many images came with it. One
object may serve several threads.
"""

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import PaliGemmaConfig, PreTrainedTokenizerBase

from pipeline.config.captions import Granularity
from pipeline.config.prompts import IMAGE
from pipeline.models.batching import check_options, fixed_batches
from pipeline.models.checkpoints import resolve_checkpoint
from pipeline.models.device_placement import Placement
from pipeline.models.gemma import GemmaConfig, cut_axis
from pipeline.models.image_preparation import ImagePreparation
from pipeline.models.interfaces import Caption
from pipeline.models.paligemma import Answer, PaliGemma, Prompt, Sampling, generate
from pipeline.models.weights import (
    check_module,
    has_own_head,
    load_config,
    load_module,
    load_tokenizer,
)
from pipeline.records import FinishReason

T = TypeVar("T")

# Prompts are padded to one of these lengths, so that few programs are compiled.
_PROMPT_LENGTHS = (16, 32, 64, 128, 256, 512)


def check(granularity: Granularity) -> None:
    """Raises ValueError if `load` would; reads no weights."""
    PaliGemmaCheckpoint.open(granularity)


def load(granularity: Granularity) -> "PaliGemmaCaptioner":
    """Raises ValueError if there is no such checkpoint, or it cannot be read here."""
    return PaliGemmaCaptioner.load(granularity)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Encoded images on the device: `[b, p, d]` batches, the last one padded."""

    batches: tuple[jax.Array, ...]
    n_images: int

    def rows(self, numbers: np.ndarray) -> jax.Array:
        """`[len(numbers), p, d]` of chosen images."""
        whole = (
            self.batches[0] if len(self.batches) == 1 else jnp.concatenate(self.batches)
        )
        is_all = np.array_equal(numbers, np.arange(len(whole)))
        return whole if is_all else whole[numbers]


@dataclasses.dataclass(frozen=True, eq=False)
class PaliGemmaCheckpoint:
    """A checkpoint whose parts fit each other; its weights are still on disk."""

    folder: Path
    config: PaliGemmaConfig
    preparation: ImagePreparation
    tokens: "PromptTokens"
    dtype: str
    has_own_head: bool

    @classmethod
    def open(cls, granularity: Granularity) -> Self:
        """Reads everything but the weights, of which it looks at names and shapes.

        Raises:
          ValueError: if it is not a whole PaliGemma checkpoint that can be read here.
        """
        check_options(granularity.batch_size, granularity.dtype)
        folder = resolve_checkpoint(granularity.checkpoint, granularity.revision)
        config = load_config(folder, PaliGemmaConfig)
        preparation = ImagePreparation.load(folder, granularity.resampling)
        preparation.check_model(config.vision_config)
        tokens = PromptTokens.load(folder)
        tokens.check_model(config)
        is_own = has_own_head(folder, is_tied=config.tie_word_embeddings)
        checkpoint = cls(folder, config, preparation, tokens, granularity.dtype, is_own)
        check_module(checkpoint.build, folder)
        return checkpoint

    def build(self, rngs: nnx.Rngs) -> PaliGemma:
        return PaliGemma(
            self.config, rngs=rngs, dtype=self.dtype, has_own_head=self.has_own_head
        )


@dataclasses.dataclass(eq=False)
class PaliGemmaCaptioner:
    """PaliGemma 1 or 2 on all local devices; made by `load`.

    `batch_size` counts the images of all devices. It is halved when a device runs out
    of memory, and stays so.
    """

    batch_size: int
    preparation: ImagePreparation
    tokens: "PromptTokens"
    placement: Placement
    encode_batch: Callable[[jax.Array], jax.Array]
    answer_batch: Callable[..., Answer]

    @classmethod
    def load(cls, granularity: Granularity) -> Self:
        """Loads the checkpoint that a granularity names.

        Raises:
          ValueError: as `PaliGemmaCheckpoint.open`, or if its weights cannot be cut as
            the granularity asks.
        """
        _keep_compiled_programs()
        checkpoint = PaliGemmaCheckpoint.open(granularity)
        n_shards = granularity.n_model_shards
        placement = Placement.of(n_shards)
        decoder = GemmaConfig.from_hugging_face(checkpoint.config.text_config)
        graph, params = load_module(
            checkpoint.build,
            checkpoint.folder,
            checkpoint.dtype,
            lambda name, x: placement.weight(x, cut_axis(name, decoder, n_shards)),
        )
        encode = jax.jit(functools.partial(_encode, graph, checkpoint.preparation))
        answer = jax.jit(
            functools.partial(_answer, graph, checkpoint.tokens.end_id),
            static_argnames=("max_new_tokens", "sampling"),
        )
        return cls(
            batch_size=granularity.batch_size * placement.n_batch_shards,
            preparation=checkpoint.preparation,
            tokens=checkpoint.tokens,
            placement=placement,
            encode_batch=functools.partial(encode, params),
            answer_batch=functools.partial(answer, params),
        )

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return self.preparation.resize(rgb)

    def encode(self, images: Sequence[np.ndarray]) -> ImageFeatures:
        """uint8 `[s, s, 3]` prepared images to features."""
        if not len(images):
            return ImageFeatures((), 0)
        stacked = np.stack(images)
        self.preparation.check_batch(stacked)

        def encode() -> ImageFeatures:
            rows = map(self.placement.rows, fixed_batches(stacked, self.batch_size))
            batches = tuple(map(self.encode_batch, rows))
            return ImageFeatures(jax.block_until_ready(batches), len(images))

        return self._in_memory(encode)

    def caption(
        self,
        features: ImageFeatures,
        prompts: Sequence[str],
        granularity: Granularity,
        keys: np.ndarray,
    ) -> list[tuple[Caption, ...]]:
        """A prompt that is too long gets captions that say so."""
        # Most granularities ask all images the same.
        prompt_to_ids = {prompt: self.tokens.ids(prompt) for prompt in set(prompts)}
        prompt_ids = [prompt_to_ids[prompt] for prompt in prompts]
        captions: dict[int, tuple[Caption, ...]] = {}
        for length, numbers in _by_padded_length(prompt_ids).items():
            if length is None:
                captions |= {i: (_too_long(prompt_ids[i]),) for i in numbers}
                continue
            ids = np.zeros((len(prompts), length), np.int32)
            for i in numbers:
                ids[i, : len(prompt_ids[i])] = prompt_ids[i]
            n_tokens = np.array([len(row) for row in prompt_ids], np.int32)
            questions = _Questions(features, Prompt(ids, n_tokens), keys)
            answer = functools.partial(self._answers, questions, numbers, granularity)
            captions |= zip(numbers, self._in_memory(answer), strict=True)
        return [captions[i] for i in range(len(prompts))]

    def _answers(
        self, questions: "_Questions", numbers: Sequence[int], granularity: Granularity
    ) -> list[tuple[Caption, ...]]:
        """Captions of chosen rows; all batches are on their way before one is read."""
        decoding, size = granularity.decoding, self.batch_size
        parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        answers = [
            self.answer_batch(
                *jax.tree.map(self.placement.rows, questions.batch(part, size)),
                max_new_tokens=granularity.max_new_tokens,
                sampling=Sampling(decoding.temperature, decoding.top_p),
            )
            for part in parts
        ]
        return [
            row
            for part, answer in zip(parts, jax.device_get(answers), strict=True)
            for row in self.tokens.captions(answer, len(part), decoding.n_samples)
        ]

    def _in_memory(self, work: Callable[[], T]) -> T:
        """Runs `work`, with smaller batches if a device runs out of memory."""
        while True:
            size = self.batch_size
            try:
                return work()
            except jax.errors.JaxRuntimeError as error:
                is_full = "RESOURCE_EXHAUSTED" in str(error)
                if not is_full or size == self.placement.n_batch_shards:
                    raise
            n_shards = self.placement.n_batch_shards
            self.batch_size = max(size // n_shards // 2, 1) * n_shards
            logging.warning(
                "out of memory with batches of %d images: going on with batches of %d",
                size,
                self.batch_size,
            )


@dataclasses.dataclass(frozen=True, eq=False)
class _Questions:
    """One row an image: its features, its prompt, and keys `[n, n_samples, 2]`."""

    features: ImageFeatures
    prompt: Prompt
    keys: np.ndarray

    def batch(
        self, numbers: Sequence[int], size: int
    ) -> tuple[jax.Array, Prompt, np.ndarray, np.ndarray]:
        """Features, prompt, `is_row` and keys of chosen rows; the last one pads."""
        rows = np.full(size, numbers[-1])
        rows[: len(numbers)] = numbers
        prompt = Prompt(*(x[rows] for x in self.prompt))
        is_row = np.arange(size) < len(numbers)
        return self.features.rows(rows), prompt, is_row, self.keys[rows]


def _by_padded_length(
    prompt_ids: Sequence[Sequence[int]],
) -> Mapping[int | None, list[int]]:
    """Numbers of the rows of each padded length; None for those that are too long."""
    length_to_numbers = collections.defaultdict(list)
    for number, ids in enumerate(prompt_ids):
        fitting = (length for length in _PROMPT_LENGTHS if length >= len(ids))
        length_to_numbers[next(fitting, None)].append(number)
    return length_to_numbers


def _too_long(ids: Sequence[int]) -> Caption:
    return Caption.failed(
        f"prompt of {len(ids)} tokens: expected at most {_PROMPT_LENGTHS[-1]}"
    )


def _keep_compiled_programs() -> None:
    """Lets later processes read what XLA compiles, unless the user says otherwise."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        folder = os.path.join(home, "tips-curation", "xla")
        jax.config.update("jax_compilation_cache_dir", folder)


def _encode(
    graph: nnx.GraphDef[PaliGemma],
    preparation: ImagePreparation,
    params: nnx.State,
    images: jax.Array,
) -> jax.Array:
    return nnx.merge(graph, params).image_features(preparation.normalize(images))


def _answer(
    graph: nnx.GraphDef[PaliGemma],
    end_id: int,
    params: nnx.State,
    features: jax.Array,
    prompt: Prompt,
    is_row: jax.Array,
    keys: jax.Array,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> Answer:
    return generate(
        nnx.merge(graph, params),
        features,
        prompt,
        is_row,
        keys,
        end_id=end_id,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokens:
    """Prompts to ids, and answers to text."""

    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises ValueError if there is no tokenizer that transformers can read."""
        return cls(load_tokenizer(folder))

    def check_model(self, config: PaliGemmaConfig) -> None:
        """Raises ValueError unless the model knows all tokens."""
        n_rows = config.text_config.vocab_size
        if len(self.tokenizer) > n_rows:
            raise ValueError(
                f"tokenizer of {len(self.tokenizer)} tokens: expected at most the "
                f"model's vocab_size {n_rows}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self.tokenizer, name) is None:
                raise ValueError(f"tokenizer without {name}: expected Gemma's")

    @property
    def end_id(self) -> int:
        return self.tokenizer.eos_token_id

    def ids(self, prompt: str) -> list[int]:
        """`<bos>`, the prompt, and the newline, which is tokenized apart."""
        text = prompt.replace(IMAGE, "")  # the image comes first in any case
        words, newline = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (text, "\n")
        )
        return [self.tokenizer.bos_token_id, *words, *newline]

    def captions(
        self, answer: Answer, n_images: int, n_samples: int
    ) -> list[tuple[Caption, ...]]:
        """The first `n_images` images of an answer, `n_samples` rows each."""
        n_rows = n_images * n_samples
        per_row = zip(*(x[:n_rows] for x in answer), strict=True)
        rows = [self.caption(*row) for row in per_row]
        starts = range(0, n_rows, n_samples)
        return [tuple(rows[i : i + n_samples]) for i in starts]

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
