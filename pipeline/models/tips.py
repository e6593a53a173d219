"""TIPS and TIPSv2: an image tower with two CLS tokens and a text tower.

In: pixels in [0, 1] and token ids padded with 0. Out: embeddings, not normalized. Both
papers' models have this form, in folders of Hugging Face's `tipsv2`.

Attributes carry the names that the tensors have there, so that a parameter's path is
its name in a checkpoint. Source: Maninis et al. 2024, arXiv:2410.16512; TIPSv2,
arXiv:2604.12012.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from transformers import Tipsv2Config, Tipsv2TextConfig, Tipsv2VisionConfig

from pipeline.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    Memory,
    as_memory,
    attend,
    gelu,
    merge_heads,
    split_heads,
)
from pipeline.models.siglip import PackedAttention, PatchEmbedding

PAD_ID = 0
# The index of each CLS token, by the texts that it was trained against.
CLS_TOKENS = {"alt_text": 0, "synthetic_caption": 1}

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": gelu,
}
_MAX_TIMESCALE = 1e4


class LayerScale(nnx.Module):
    """A learned factor of every channel; ones in the released models."""

    def __init__(self, width: int):
        self.gamma = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class VisionMLP(nnx.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        hidden = int(width * config.mlp_ratio)
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)
        self.activation = _ACTIVATIONS[config.hidden_act]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nnx.Module):
    """A gated MLP; its hidden width is two thirds, up to a multiple of 8."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        hidden = (int(int(width * config.mlp_ratio) * 2 / 3) + 7) // 8 * 8
        self.w12 = Linear(width, 2 * hidden, rngs=rngs)
        self.w3 = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * value)


class VisionAttention(nnx.Module):
    """Every token reads every token."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.n_heads = config.num_attention_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.split(self.qkv(x), 3, axis=-1)
        q, k, v = (split_heads(part, self.n_heads) for part in parts)
        read = attend(q, [Memory(*as_memory(k, v))], scale=q.shape[-1] ** -0.5)
        return self.proj(merge_heads(read))


class VisionBlock(nnx.Module):
    """Attention and MLP, each normalized before and added to its input."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = LayerNorm(width, eps)
        self.attn = VisionAttention(config, rngs=rngs)
        self.ls1 = LayerScale(width)
        self.norm2 = LayerNorm(width, eps)
        mlp = SwiGLU if config.use_swiglu_ffn else VisionMLP
        self.mlp = mlp(config, rngs=rngs)
        self.ls2 = LayerScale(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nnx.Module):
    """One linear map for each patch."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        self.proj = PatchEmbedding(config, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        return self.proj(pixels)


class VisionTower(nnx.Module):
    """Pixels to CLS 1, CLS 2 and patches, in this order."""

    def __init__(self, config: Tipsv2VisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        n_patches = (config.image_size // config.patch_size) ** 2
        self.cls_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.register_tokens = nnx.Param(jnp.zeros((1, 1, width)))
        self.pos_embed = nnx.Param(jnp.zeros((1, 1 + n_patches, width)))
        self.patch_embed = Patches(config, rngs=rngs)
        self.blocks = nnx.List(
            VisionBlock(config, rngs=rngs) for _ in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.patch_size = config.patch_size

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """`[b, h, w, 3]` to `[b, 2 + p, d]` float32; whole patches only."""
        _, h, w, _ = pixels.shape
        first, positions = self._positions(h // self.patch_size, w // self.patch_size)
        cls = [self.cls_token[...] + first, self.register_tokens[...]]
        tokens = self.patch_embed(pixels) + positions.astype(pixels.dtype)
        cls = jnp.concatenate(cls, axis=1).astype(pixels.dtype)
        cls = jnp.broadcast_to(cls, (len(pixels), *cls.shape[1:]))
        x = jnp.concatenate([cls, tokens], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x.astype(jnp.float32))

    def _positions(self, n_rows: int, n_columns: int) -> tuple[jax.Array, jax.Array]:
        """Positions of CLS and patches, the latter bilinear between learned ones."""
        learned = self.pos_embed[...].astype(jnp.float32)
        side, width = math.isqrt(learned.shape[1] - 1), learned.shape[-1]
        grid = learned[:, 1:].reshape(1, side, side, width)
        if (n_rows, n_columns) != (side, side):
            shape = (1, n_rows, n_columns, width)
            grid = jax.image.resize(grid, shape, method="bilinear")
        return learned[:, :1], grid.reshape(1, -1, width)


class TextMLP(nnx.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, config: Tipsv2TextConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.c_fc = Linear(width, hidden, rngs=rngs)
        self.c_proj = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c_proj(jax.nn.relu(self.c_fc(x)))


class TextBlock(nnx.Module):
    """Attention to the tokens that are no padding, and MLP."""

    def __init__(self, config: Tipsv2TextConfig, *, rngs: nnx.Rngs):
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ln_1 = LayerNorm(width, eps)
        self.attn = PackedAttention(config, rngs=rngs)
        self.ln_2 = LayerNorm(width, eps)
        self.mlp = TextMLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, is_visible: jax.Array) -> jax.Array:
        normal = self.ln_1(x)
        x = x + self.attn(normal, normal, is_visible)
        return x + self.mlp(self.ln_2(x))


class TextBlocks(nnx.Module):
    """All layers of the text tower."""

    def __init__(self, config: Tipsv2TextConfig, *, rngs: nnx.Rngs):
        self.resblocks = nnx.List(
            TextBlock(config, rngs=rngs) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, x: jax.Array, is_visible: jax.Array) -> jax.Array:
        for block in self.resblocks:
            x = block(x, is_visible)
        return x


class TextTower(nnx.Module):
    """Token ids to the mean of their tokens."""

    def __init__(self, config: Tipsv2TextConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.token_embedding = Embedding(config.vocab_size, width, rngs=rngs)
        self.transformer = TextBlocks(config, rngs=rngs)
        self.ln_final = LayerNorm(width, config.layer_norm_eps)

    def __call__(self, token_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """`[b, t]` ids to `[b, d]` float32; zeros for a row without a token."""
        b, t = token_ids.shape
        is_token = token_ids != PAD_ID
        x = self.token_embedding(token_ids, jnp.float32)
        width = x.shape[-1]
        x = x * math.sqrt(width) + sinusoids(t, width)
        is_visible = jnp.broadcast_to(is_token[:, None], (b, t, t))
        x = self.transformer(x.astype(dtype), is_visible)
        x = self.ln_final(x.astype(jnp.float32)) * is_token[..., None]
        return x.sum(axis=1) / (is_token.sum(axis=1, keepdims=True) + 1e-8)


def sinusoids(n_tokens: int, width: int) -> np.ndarray:
    """Sines, then cosines, of position / timescale; timescales from 1 to 10,000."""
    timescales = np.geomspace(1, _MAX_TIMESCALE, width // 2)
    angles = np.arange(n_tokens)[:, None] / timescales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1, dtype=np.float32)


class Tipsv2(nnx.Module):
    """Both towers. `dtype` is that of the computation; parameters keep their own.

    `cls_token` is a key of `CLS_TOKENS`.
    """

    def __init__(
        self,
        config: Tipsv2Config,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        cls_token: str = "alt_text",
    ):
        _check(config)
        self.vision_encoder = VisionTower(config.vision_config, rngs=rngs)
        self.text_encoder = TextTower(config.text_config, rngs=rngs)
        self.dtype = jnp.dtype(dtype)
        self.cls_index = CLS_TOKENS[cls_token]

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """`[b, h, w, 3]` pixels to `[b, d]` float32, not L2-normalized."""
        return self.vision_encoder(pixels.astype(self.dtype))[:, self.cls_index]

    def embed_texts(self, token_ids: jax.Array) -> jax.Array:
        """`[b, t]` token ids to `[b, d]` float32, not L2-normalized."""
        return self.text_encoder(token_ids, self.dtype)


def _check(config: Tipsv2Config) -> None:
    """Raises ValueError unless it is one of the forms written here."""
    vision, text = config.vision_config, config.text_config
    expected = {
        ("hidden_act", vision.hidden_act): tuple(_ACTIVATIONS),
        ("num_register_tokens", vision.num_register_tokens): (1,),
        ("qkv_bias", vision.qkv_bias): (True,),
        ("hidden_act of the text tower", text.hidden_act): ("relu",),
        ("scale_sqrt_depth", text.scale_sqrt_depth): (True,),
    }
    for (name, value), allowed in expected.items():
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise ValueError(f"{name}={value!r}: expected {choices}")
    for name in ("image_size", "patch_size"):
        if not isinstance(side := getattr(vision, name), int):
            raise ValueError(f"{name}={side!r}: expected one number, of a square")
