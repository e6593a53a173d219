"""Frozen encoders that map images and texts to one space of unit vectors.

In: uint8 images prepared by the same encoder, and strings. Out: float32 rows of length
1, so that a dot product is a cosine. Any number of rows may be given; they are computed
in batches of one shape on all local devices, and one object may serve several threads.
"""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self

import jax
import numpy as np
import sentencepiece
from flax import nnx
from transformers import PreTrainedTokenizerBase, SiglipConfig, Tipsv2Config

from pipeline.config.curation import EncoderConfig
from pipeline.models.batching import check_options, fixed_batches
from pipeline.models.checkpoints import (
    ModelIdentity,
    resolve_checkpoint,
    weights_digest,
)
from pipeline.models.device_placement import Placement
from pipeline.models.image_preparation import ImagePreparation
from pipeline.models.interfaces import Encoder
from pipeline.models.siglip import Siglip, unit_rows
from pipeline.models.tips import PAD_ID, Tipsv2
from pipeline.models.weights import (
    check_module,
    load_config,
    load_module,
    load_tokenizer,
    model_type_of,
)

Dtype = Literal["float32", "bfloat16"]
ClsToken = Literal["alt_text", "synthetic_caption"]


def check(config: EncoderConfig) -> None:
    """Raises ValueError if `load_encoder` would; reads no weights."""
    folder = resolve_checkpoint(config.checkpoint)
    kind = _encoder_of(config, folder)
    kind.open(folder, config).check_weights()


def load_encoder(config: EncoderConfig) -> Encoder:
    """Raises ValueError if the checkpoint cannot be read here."""
    return _encoder_of(config, resolve_checkpoint(config.checkpoint))._load(config)


def _encoder_of(config: EncoderConfig, folder: Path) -> "type[TwoTowerEncoder]":
    if model_type_of(folder) == Tipsv2Config.model_type:
        return Tipsv2Encoder
    if config.cls_token != "alt_text":
        raise ValueError(
            f"cls_token={config.cls_token!r}: expected 'alt_text', or a checkpoint of"
            f" tipsv2 in place of {config.checkpoint!r}"
        )
    return SiglipEncoder


class Tokens(Protocol):
    """Texts to token ids of one length."""

    def ids(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderCheckpoint:
    """A checkpoint whose parts fit each other; its weights are still on disk."""

    folder: Path
    embedding_dim: int
    preparation: ImagePreparation
    tokens: Tokens
    build: Callable[[nnx.Rngs], Siglip | Tipsv2]

    def check_weights(self) -> None:
        """Raises ValueError unless they are those of the model, by name and shape."""
        check_module(self.build, self.folder)


@dataclasses.dataclass(frozen=True, eq=False)
class TwoTowerEncoder:
    """Two compiled towers on all local devices, and what prepares their inputs.

    `batch_size` counts the rows of all devices. Each computes batches of the shape that
    one device alone would, so the values do not depend on how many there are.
    """

    identity: ModelIdentity
    embedding_dim: int
    batch_size: int
    preparation: ImagePreparation
    tokens: Tokens
    placement: Placement
    embed_images: Callable[[jax.Array], jax.Array]
    embed_token_ids: Callable[[jax.Array], jax.Array]

    @property
    def image_size_px(self) -> int:
        return self.preparation.size_px

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        return self.preparation.resize(rgb)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        self.preparation.check_batch(images)
        return self._encode(self.embed_images, images)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self.embed_token_ids, self.tokens.ids(texts))

    def _encode(
        self, embed: Callable[[jax.Array], jax.Array], rows: np.ndarray
    ) -> np.ndarray:
        placed = map(self.placement.rows, fixed_batches(rows, self.batch_size))
        batches = list(map(embed, placed))
        no_rows = np.zeros((0, self.embedding_dim), np.float32)
        return np.concatenate([*jax.device_get(batches), no_rows])[: len(rows)]

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig) -> EncoderCheckpoint:
        """Raises ValueError if it is no checkpoint that can be read here."""
        raise NotImplementedError

    @classmethod
    def _load(cls, config: EncoderConfig) -> Self:
        folder = resolve_checkpoint(config.checkpoint)
        opened = cls.open(folder, config)
        placement = Placement.of()
        graph, params = load_module(
            *(opened.build, folder, config.dtype),
            lambda name, tensor: placement.weight(tensor, cut_axis=None),
        )
        embed_images = functools.partial(_embed_images, graph, opened.preparation)
        embed_token_ids = functools.partial(_embed_token_ids, graph)
        digest = weights_digest(folder)
        return cls(
            identity=ModelIdentity(
                config.checkpoint, digest, config.dtype, config.cls_token
            ),
            embedding_dim=opened.embedding_dim,
            batch_size=config.batch_size * placement.n_batch_shards,
            preparation=opened.preparation,
            tokens=opened.tokens,
            placement=placement,
            embed_images=functools.partial(jax.jit(embed_images), params),
            embed_token_ids=functools.partial(jax.jit(embed_token_ids), params),
        )


class SiglipEncoder(TwoTowerEncoder):
    """SigLIP or SigLIP 2; made by `load`."""

    @classmethod
    def load(cls, checkpoint: str, batch_size: int, dtype: Dtype) -> Self:
        """Loads a folder or a Hugging Face id.

        Args:
          dtype: of weights and computation, "float32" or "bfloat16".

        Raises:
          ValueError: if it is not a SigLIP checkpoint that can be read here.
        """
        check_options(batch_size, dtype)
        return cls._load(EncoderConfig(checkpoint, batch_size, dtype))

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig) -> EncoderCheckpoint:
        model = load_config(folder, SiglipConfig)
        preparation = ImagePreparation.load(folder)
        preparation.check_model(model.vision_config)
        return EncoderCheckpoint(
            folder,
            model.vision_config.hidden_size,
            preparation,
            SiglipTokens.load(folder, model),
            lambda rngs: Siglip(model, rngs=rngs, dtype=config.dtype),
        )


class Tipsv2Encoder(TwoTowerEncoder):
    """TIPS or TIPSv2; made by `load`. A text without a token gives a row of zeros."""

    @classmethod
    def load(
        cls,
        checkpoint: str,
        batch_size: int,
        dtype: Dtype,
        cls_token: ClsToken = "alt_text",
    ) -> Self:
        """Loads a folder or a Hugging Face id.

        Args:
          dtype: of weights and computation, "float32" or "bfloat16".
          cls_token: "alt_text" or "synthetic_caption", which image vector is meant.

        Raises:
          ValueError: if it is not a TIPS checkpoint that can be read here.
        """
        check_options(batch_size, dtype)
        return cls._load(EncoderConfig(checkpoint, batch_size, dtype, cls_token))

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig) -> EncoderCheckpoint:
        model = load_config(folder, Tipsv2Config)
        preparation = ImagePreparation.load(folder, model_type=model.model_type)
        patch = model.vision_config.patch_size
        if preparation.size_px % patch:
            raise ValueError(
                f"preprocessor size={preparation.size_px}: expected a multiple of the "
                f"vision tower's patch_size {patch}"
            )
        n_positions = model.text_config.max_position_embeddings
        options = {"dtype": config.dtype, "cls_token": config.cls_token}
        return EncoderCheckpoint(
            folder,
            model.vision_config.hidden_size,
            preparation,
            Tipsv2Tokens.load(folder, n_positions),
            lambda rngs: Tipsv2(model, rngs=rngs, **options),
        )


def _embed_images(
    graph: nnx.GraphDef[Siglip | Tipsv2],
    preparation: ImagePreparation,
    params: nnx.State,
    images: jax.Array,
) -> jax.Array:
    model = nnx.merge(graph, params)
    return unit_rows(model.embed_images(preparation.normalize(images)))


def _embed_token_ids(
    graph: nnx.GraphDef[Siglip | Tipsv2], params: nnx.State, token_ids: jax.Array
) -> jax.Array:
    return unit_rows(nnx.merge(graph, params).embed_texts(token_ids))


@dataclasses.dataclass(frozen=True, eq=False)
class SiglipTokens:
    """Token ids as in SigLIP's training: lower case, padded right to a fixed length."""

    tokenizer: PreTrainedTokenizerBase
    n_positions: int
    # Setting truncation changes the tokenizer, which another thread may be using.
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def load(cls, folder: Path, config: SiglipConfig) -> Self:
        """Raises ValueError if there is none, or one of more tokens than the model."""
        tokenizer = load_tokenizer(folder)
        n_rows = config.text_config.vocab_size
        if len(tokenizer) > n_rows:
            raise ValueError(
                f"tokenizer of {len(tokenizer)} tokens: expected at most the model's "
                f"vocab_size {n_rows}"
            )
        return cls(tokenizer, config.text_config.max_position_embeddings)

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """`n` texts to int32 `[n, n_positions]`, cut if they are longer.

        Lower-casing is done here because the SigLIP 2 checkpoints that name Gemma's
        tokenizer do not get it from there.
        """
        if not texts:
            return np.zeros((0, self.n_positions), np.int32)
        with self.lock:
            encoded = self.tokenizer(
                [text.lower() for text in texts],
                padding="max_length",
                padding_side="right",
                truncation=True,
                max_length=self.n_positions,
            )
        return np.array(encoded["input_ids"], np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Tipsv2Tokens:
    """Token ids as in training: lower case, no begin or end, padded right with 0."""

    processor: sentencepiece.SentencePieceProcessor
    n_positions: int

    @classmethod
    def load(cls, folder: Path, n_positions: int) -> Self:
        path = folder / "tokenizer.model"
        if not path.exists():
            raise ValueError(f"checkpoint={str(folder)!r}: expected {path.name} in it")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: expected a sentencepiece model") from error
        return cls(processor, n_positions)

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """`n` texts to int32 `[n, n_positions]`, cut if they are longer."""
        ids = np.full((len(texts), self.n_positions), PAD_ID, np.int32)
        for row, text in zip(ids, texts, strict=True):
            found = self.processor.encode(text.lower())[: self.n_positions]
            row[: len(found)] = found
        return ids


@dataclasses.dataclass(frozen=True)
class NullEncoder:
    """Embeddings that cost a hash of the bytes: for tests, and to time all the rest.

    Equal inputs get equal rows; any two others are about orthogonal.
    """

    image_size_px: int = 32
    batch_size: int = 64

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity("null", digest="", dtype="float32")

    @property
    def embedding_dim(self) -> int:
        return hashlib.blake2b.MAX_DIGEST_SIZE

    def prepare_image(self, rgb: np.ndarray) -> np.ndarray:
        """Nearest pixels."""
        rows, columns = (
            np.arange(self.image_size_px) * side // self.image_size_px
            for side in rgb.shape[:2]
        )
        return rgb[rows[:, None], columns]

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        return self._hashed(image.tobytes() for image in images)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._hashed(text.encode() for text in texts)

    def _hashed(self, contents: Iterable[bytes]) -> np.ndarray:
        digests = b"".join(hashlib.blake2b(content).digest() for content in contents)
        rows = np.frombuffer(digests, np.uint8).reshape(-1, self.embedding_dim) - 127.5
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / lengths).astype(np.float32)
