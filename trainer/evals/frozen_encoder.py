"""The frozen encoders: images and texts in, features out, on all devices of a mesh.

Each kind of features is compiled once per size of images. A batch is sharded over the
devices; the features come back whole, on every process.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from trainer.config import TrainConfig
from trainer.data.text_tokenizer import Tokenizer
from trainer.distributed.sharding import batch_sharding, replicated, tracing_for
from trainer.models import dpt
from trainer.models.layers import ParamMaker
from trainer.models.text_encoder import TextEncoder
from trainer.models.two_tower import unit_range
from trainer.models.vit import VisionOutput, VisionTransformer

_BATCH_SIZE = 64
_SMALL_BATCH_SIZE = 16  # where patches come back


class Encoder:
    """Encodes with `params`, which hold `vision`, and `text` if texts are encoded."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh):
        model = config.model
        self.patch_px = model.vision.patch_size_px
        self.size_px = config.data.global_crop.size_px
        self.vision = model.vision
        self._mesh = mesh
        self._tokenizer = tokenizer
        make = ParamMaker(None)
        vision = VisionTransformer(model.vision, make, config.compute)
        self._vision = nnx.graphdef(vision)
        self._text = nnx.graphdef(TextEncoder(model.text, make, config.compute))
        self._levels = dpt.levels(model.vision)
        self._encode_cls = self._compile(self._vision, _cls)
        self._encode_patches = self._compile(self._vision, _patches)
        self._encode_values = self._compile(self._vision, _values)
        self._encode_attention = self._compile(self._vision, _attention)
        self._encode_levels = self._compile(self._vision, self._intermediate)
        self._encode_text = self._compile(self._text, lambda text, ids: text(ids))

    def images(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n 2 d"]:
        """Returns both CLS tokens of each image."""
        return self._in_batches(self._encode_cls, params["vision"], images)

    def patches(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> VisionOutput:
        """Returns CLS tokens and patches, float16."""
        encode, size = self._encode_patches, _SMALL_BATCH_SIZE
        return self._in_batches(encode, params["vision"], images, size)

    def levels(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> list[VisionOutput]:
        """Returns the inputs of DPT: CLS tokens and patches of four blocks, float16."""
        encode, size = self._encode_levels, _SMALL_BATCH_SIZE
        return self._in_batches(encode, params["vision"], images, size)

    def values(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n gh gw d"]:
        """Returns patches by the values of the last block, for zero-shot masks.

        Encodes one image per device at a time, since the sizes of photos differ.
        """
        size = self._mesh.size
        return self._in_batches(self._encode_values, params["vision"], images, size)

    def attention(
        self, params: dict, images: UInt8[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n heads 2 t"]:
        """Returns attention weights of both CLS tokens in the last block.

        They cover all tokens, CLS tokens first.
        """
        encode, size = self._encode_attention, _SMALL_BATCH_SIZE
        return self._in_batches(encode, params["vision"], images, size)

    def texts(self, params: dict, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Returns one vector per text, not normalized."""
        ids = self._tokenizer(texts)
        return self._in_batches(self._encode_text, params["text"], ids)

    def _intermediate(
        self, vision: VisionTransformer, image: UInt8[Array, "b h w 3"]
    ) -> list[VisionOutput]:
        found = vision.intermediate(unit_range(image), self._levels)
        return jax.tree.map(_to_float16, found)

    def _compile(self, graph: nnx.GraphDef, encode: Callable) -> Callable:
        cut = batch_sharding(self._mesh)

        def run(params: dict, rows: Array) -> Any:
            rows = jax.lax.with_sharding_constraint(rows, cut)
            with tracing_for(self._mesh):
                return encode(nnx.merge(graph, params), rows)

        return jax.jit(run, out_shardings=replicated(self._mesh))

    def _in_batches(
        self,
        encode: Callable[[dict, np.ndarray], Any],
        params: dict,
        rows: np.ndarray,
        size: int = _BATCH_SIZE,
    ) -> Any:
        """Encodes in batches of one size, so that each is compiled once."""
        size = -(-size // self._mesh.size) * self._mesh.size
        padding = np.zeros((-len(rows) % size, *rows.shape[1:]), rows.dtype)
        padded = np.concatenate([rows, padding])
        starts = range(0, len(padded), size)
        parts = [jax.device_get(encode(params, padded[i : i + size])) for i in starts]
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(rows)], *parts)


def _cls(
    vision: VisionTransformer, image: UInt8[Array, "b h w 3"]
) -> Float[Array, "b 2 d"]:
    return vision(unit_range(image)).cls


def _patches(vision: VisionTransformer, image: UInt8[Array, "b h w 3"]) -> VisionOutput:
    return jax.tree.map(_to_float16, vision(unit_range(image)))


def _values(
    vision: VisionTransformer, image: UInt8[Array, "b h w 3"]
) -> Float[Array, "b gh gw d"]:
    return vision.value_patches(unit_range(image))


def _attention(
    vision: VisionTransformer, image: UInt8[Array, "b h w 3"]
) -> Float[Array, "b heads 2 t"]:
    return vision.cls_attention(unit_range(image))


def _to_float16(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Normalized features fit, in half the memory."""
    return x.astype(jnp.float16)
