"""SigLIP: an image tower and a text tower that map to one embedding space.

In: pixels in [-1, 1] (or as the checkpoint's preprocessor says) and token ids padded to
the longest length. Out: embeddings, not normalized. The same modules serve SigLIP and
the fixed-resolution SigLIP 2 checkpoints (`model_type` is `siglip` in both).

Attributes carry the names of Hugging Face's `SiglipModel`, so that a parameter's path
is its name in a checkpoint. Source: Zhai et al. 2023, arXiv:2303.15343; Tschannen et
al. 2025, arXiv:2502.14786.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from transformers import (
    SiglipConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    Tipsv2TextConfig,
    Tipsv2VisionConfig,
)

from pipeline.models.layers import (
    LECUN_NORMAL,
    XAVIER_UNIFORM,
    Embedding,
    LayerNorm,
    Linear,
    Memory,
    as_memory,
    attend,
    check_activation,
    contract,
    gelu,
    merge_heads,
    split_heads,
)

TowerConfig: TypeAlias = SiglipVisionConfig | SiglipTextConfig


class SiglipMLP(nnx.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))


class SiglipAttention(nnx.Module):
    """Every token reads every token, padding included: SigLIP is trained that way."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)
        self.n_heads = config.num_attention_heads

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (
            split_heads(project(x), self.n_heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        memory = Memory(*as_memory(k, v))
        read = attend(q, [memory], scale=q.shape[-1] ** -0.5)
        return self.out_proj(merge_heads(read))


class SiglipLayer(nnx.Module):
    """Attention and MLP, each normalized before and added to its input."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SiglipAttention(config, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = SiglipMLP(config, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipLayers(nnx.Module):
    """All layers of one tower."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        check_activation(config.hidden_act)
        self.layers = nnx.List(
            SiglipLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its kernel: one linear map for each patch."""

    def __init__(
        self, config: SiglipVisionConfig | Tipsv2VisionConfig, *, rngs: nnx.Rngs
    ):
        width, side = config.hidden_size, config.patch_size
        n_inputs = config.num_channels * side * side
        weight = LECUN_NORMAL(rngs.params(), (width, n_inputs))
        self.weight = nnx.Param(weight.reshape(width, config.num_channels, side, side))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """`[b, h, w, c]` pixels to `[b, p, d]`, patches in reading order.

        Pixels beyond the last whole patch are left out (384 px is no multiple of 14).
        """
        b, h, w, c = pixels.shape
        side = self.weight.shape[-1]
        n_rows, n_columns = h // side, w // side
        whole = pixels[:, : n_rows * side, : n_columns * side]
        patches = whole.reshape(b, n_rows, side, n_columns, side, c)
        out = contract("byixjc,dcij->byxd", patches, self.weight[...])
        return out.reshape(b, -1, out.shape[-1]) + self.bias[...].astype(pixels.dtype)


class VisionEmbeddings(nnx.Module):
    """Patches with learned positions."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        n_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = PatchEmbedding(config, rngs=rngs)
        self.position_embedding = Embedding(n_patches, config.hidden_size, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.patch_embedding(pixels)
        return x + self.position_embedding(jnp.arange(x.shape[1]), x.dtype)


class TextEmbeddings(nnx.Module):
    """Tokens with learned positions."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        n_positions, width = config.max_position_embeddings, config.hidden_size
        self.token_embedding = Embedding(config.vocab_size, width, rngs=rngs)
        self.position_embedding = Embedding(n_positions, width, rngs=rngs)

    def __call__(self, token_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        positions = jnp.arange(token_ids.shape[1])
        tokens = self.token_embedding(token_ids, dtype)
        return tokens + self.position_embedding(positions, dtype)


class PackedAttention(nnx.Module):
    """`torch.nn.MultiheadAttention`: queries, keys and values in one packed weight."""

    def __init__(
        self, config: SiglipVisionConfig | Tipsv2TextConfig, *, rngs: nnx.Rngs
    ):
        width = config.hidden_size
        self.in_proj_weight = nnx.Param(
            XAVIER_UNIFORM(rngs.params(), (3 * width, width))
        )
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width))
        self.out_proj = Linear(width, width, rngs=rngs)
        self.n_heads = config.num_attention_heads

    def __call__(
        self,
        queries: jax.Array,
        memory: jax.Array,
        is_visible: jax.Array | None = None,
    ) -> jax.Array:
        """`is_visible[q, t, s]` says what each query may read; None is everything."""
        weights = jnp.split(self.in_proj_weight[...], 3)
        biases = jnp.split(self.in_proj_bias[...].astype(memory.dtype), 3)
        inputs = (queries, memory, memory)
        q, k, v = (
            split_heads(contract("bti,oi->bto", x, weight) + bias, self.n_heads)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        memory = Memory(*as_memory(k, v), is_visible)
        read = attend(q, [memory], scale=q.shape[-1] ** -0.5)
        return self.out_proj(merge_heads(read))


class AttentionPooling(nnx.Module):
    """One learned query reads all patches: `[b, p, d]` to `[b, d]`."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        self.probe = nnx.Param(
            XAVIER_UNIFORM(rngs.params(), (1, 1, config.hidden_size))
        )
        self.attention = PackedAttention(config, rngs=rngs)
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = SiglipMLP(config, rngs=rngs)

    def __call__(self, patches: jax.Array) -> jax.Array:
        b, _, d = patches.shape
        probe = jnp.broadcast_to(self.probe[...].astype(patches.dtype), (b, 1, d))
        pooled = self.attention(probe, patches)
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class VisionTower(nnx.Module):
    """Pixels to patch tokens, and to one embedding if the checkpoint has a head."""

    def __init__(self, config: SiglipVisionConfig, *, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, rngs=rngs)
        self.encoder = SiglipLayers(config, rngs=rngs)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        has_head = config.vision_use_head
        self.head = AttentionPooling(config, rngs=rngs) if has_head else None

    def patch_tokens(self, pixels: jax.Array) -> jax.Array:
        """`[b, s, s, 3]` pixels to `[b, p, d]`, after the last normalization."""
        return self.post_layernorm(self.encoder(self.embeddings(pixels)))

    def pooled(self, patches: jax.Array) -> jax.Array:
        """`[b, p, d]` to `[b, d]`; ValueError if the checkpoint has no head."""
        if self.head is None:
            raise ValueError("vision_use_head=False: expected a tower with a head")
        return self.head(patches)


class TextTower(nnx.Module):
    """Token ids to one embedding."""

    def __init__(self, config: SiglipTextConfig, *, rngs: nnx.Rngs):
        self.embeddings = TextEmbeddings(config, rngs=rngs)
        self.encoder = SiglipLayers(config, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = Linear(config.hidden_size, config.projection_size, rngs=rngs)

    def __call__(self, token_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """`[b, t]` ids to `[b, d]`, from the last token, which may be padding."""
        tokens = self.encoder(self.embeddings(token_ids, dtype))
        return self.head(self.final_layer_norm(tokens[:, -1]))


class Siglip(nnx.Module):
    """Both towers and the scale and bias of the sigmoid loss.

    `dtype` is that of the computation; parameters keep their own.
    """

    def __init__(
        self,
        config: SiglipConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        _check_heads(config)
        self.text_model = TextTower(config.text_config, rngs=rngs)
        self.vision_model = VisionTower(config.vision_config, rngs=rngs)
        # Start of training in the SigLIP paper; a checkpoint overwrites both.
        self.logit_scale = nnx.Param(jnp.full(1, math.log(10.0)))
        self.logit_bias = nnx.Param(jnp.full(1, -10.0))
        self.dtype = jnp.dtype(dtype)

    def embed_images(self, pixels: jax.Array) -> jax.Array:
        """`[b, s, s, 3]` normalized pixels to `[b, d]` float32, not L2-normalized."""
        patches = self.vision_model.patch_tokens(pixels.astype(self.dtype))
        return self.vision_model.pooled(patches).astype(jnp.float32)

    def embed_texts(self, token_ids: jax.Array) -> jax.Array:
        """`[b, t]` token ids to `[b, d]` float32, not L2-normalized."""
        return self.text_model(token_ids, self.dtype).astype(jnp.float32)

    def logits(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """`exp(logit_scale) * cosine + logit_bias`, `[n_images, n_texts]`."""
        cosines = contract("id,td->it", unit_rows(images), unit_rows(texts))
        return jnp.exp(self.logit_scale[...]) * cosines + self.logit_bias[...]


def _check_heads(config: SiglipConfig) -> None:
    image_dim = config.vision_config.hidden_size
    if config.text_config.projection_size != image_dim:
        raise ValueError(
            f"projection_size={config.text_config.projection_size}: expected the width "
            f"of image embeddings, {image_dim}"
        )
    if not config.vision_config.vision_use_head:
        raise ValueError(
            "vision_use_head=false: expected a tower with its pooling head"
        )


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows scaled to length 1; rows of zeros stay."""
    lengths = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(lengths, jnp.finfo(x.dtype).tiny)
