"""Gemma and Gemma 2 decoders, with the key-value cache kept by the caller.

In: embeddings, positions and a visibility mask. Out: hidden states, and the keys and
values of every layer. One class serves both families; `GemmaConfig` holds what differs:
Gemma 2 normalises also after attention and MLP, caps logits, and alternates
sliding-window layers.

Attributes carry the names of Hugging Face's `GemmaModel`. Source: arXiv:2403.08295,
arXiv:2408.00118.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import transformers
from flax import nnx
from jax.typing import DTypeLike

from pipeline.models.layers import (
    Embedding,
    Linear,
    RMSNorm,
    attend,
    check_activation,
    contract,
    gelu,
    merge_heads,
    split_heads,
)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """What the forward pass needs; `windows[i]` is None if layer `i` sees all."""

    vocab_size: int
    width: int
    mlp_width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    query_scale: float
    windows: tuple[int | None, ...]
    has_post_norms: bool
    attention_cap: float | None
    final_cap: float | None

    @classmethod
    def from_hugging_face(
        cls, config: transformers.GemmaConfig | transformers.Gemma2Config
    ) -> Self:
        """Raises ValueError for a family or an option that is not written here."""
        if config.model_type not in ("gemma", "gemma2"):
            raise ValueError(
                f"text model_type={config.model_type!r}: expected 'gemma' or 'gemma2'"
            )
        is_second = config.model_type == "gemma2"
        check_activation(config.hidden_activation if is_second else config.hidden_act)
        rope = config.rope_parameters
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rope_type={rope['rope_type']!r}: expected 'default'")
        scalar = config.query_pre_attn_scalar if is_second else config.head_dim
        return cls(
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            norm_eps=config.rms_norm_eps,
            rope_theta=rope["rope_theta"],
            query_scale=scalar**-0.5,
            windows=_windows(config),
            has_post_norms=is_second,
            attention_cap=config.attn_logit_softcapping if is_second else None,
            final_cap=config.final_logit_softcapping if is_second else None,
        )


_AXIS_TO_CUT_LAYERS = {
    0: ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens"),
    1: ("o_proj", "down_proj"),
}


def cut_axis(name: str, config: GemmaConfig, n_shards: int) -> int | None:
    """The axis along which `n_shards` devices share a parameter; None for a whole one.

    Heads and the hidden width of the MLP are shared, so that devices exchange two sums
    a layer; so are the heads of keys and values and the rows of the token table where
    that comes out even. Source: Shoeybi et al. 2019, arXiv:1909.08053.

    Raises:
      ValueError: if heads or the hidden width do not come out even.
    """
    if n_shards == 1 or not name.startswith("language_model."):
        return None
    for kind in ("n_heads", "mlp_width"):
        if (n := getattr(config, kind)) % n_shards:
            raise ValueError(
                f"n_model_shards={n_shards}: expected a divisor of the decoder's "
                f"{kind} {n}"
            )
    layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
    layer_to_n = {
        "embed_tokens": config.vocab_size,
        "k_proj": config.n_kv_heads,
        "v_proj": config.n_kv_heads,
    }
    if layer_to_n.get(layer, n_shards) % n_shards:
        return None
    axes = _AXIS_TO_CUT_LAYERS.items()
    return next((axis for axis, layers in axes if layer in layers), None)


def _windows(
    config: transformers.GemmaConfig | transformers.Gemma2Config,
) -> tuple[int | None, ...]:
    if config.model_type == "gemma":
        return (None,) * config.num_hidden_layers
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    )


class KeysValues(NamedTuple):
    """One layer's keys and values, each `[b, n_kv_heads, s, head_dim]`."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[KeysValues, ...]


class Tokens(NamedTuple):
    """What attention must know of `[b, t]` tokens besides their content.

    Positions count from 1. A `prefix` token is seen by all prefix tokens; any valid
    token is seen by those at its position or later.
    """

    positions: jax.Array
    is_prefix: jax.Array
    is_valid: jax.Array


def is_visible(queries: Tokens, keys: Tokens, window: int | None) -> jax.Array:
    """The prefix-LM mask, `[b, t, s]`: may query `t` read key `s`?"""
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    causal = distance >= 0
    if window is not None:
        causal &= distance < window
    both_prefix = queries.is_prefix[:, :, None] & keys.is_prefix[:, None, :]
    return (causal | both_prefix) & keys.is_valid[:, None, :]


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary positions of `[b, t, n_heads, d]`, halves convention, in float32."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class GemmaMLP(nnx.Module):
    """A linear map gated by another's GELU."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs):
        d, hidden = config.width, config.mlp_width
        self.gate_proj = Linear(d, hidden, rngs=rngs, use_bias=False)
        self.up_proj = Linear(d, hidden, rngs=rngs, use_bias=False)
        self.down_proj = Linear(hidden, d, rngs=rngs, use_bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(gelu(self.gate_proj(x)) * self.up_proj(x))


class GemmaAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: GemmaConfig, window: int | None, *, rngs: nnx.Rngs):
        d, n_q = config.width, config.n_heads * config.head_dim
        n_kv = config.n_kv_heads * config.head_dim
        self.q_proj = Linear(d, n_q, rngs=rngs, use_bias=False)
        self.k_proj = Linear(d, n_kv, rngs=rngs, use_bias=False)
        self.v_proj = Linear(d, n_kv, rngs=rngs, use_bias=False)
        self.o_proj = Linear(n_q, d, rngs=rngs, use_bias=False)
        self.config = config
        self.window = window

    def keys_values(self, x: jax.Array, positions: jax.Array) -> KeysValues:
        n_kv_heads, theta = self.config.n_kv_heads, self.config.rope_theta
        keys = rotate(split_heads(self.k_proj(x), n_kv_heads), positions, theta)
        values = split_heads(self.v_proj(x), n_kv_heads)
        return KeysValues(keys.swapaxes(1, 2), values.swapaxes(1, 2))

    def __call__(
        self, x: jax.Array, memory: KeysValues, queries: Tokens, keys: Tokens
    ) -> jax.Array:
        config = self.config
        q = split_heads(self.q_proj(x), config.n_heads)
        read = attend(
            rotate(q, queries.positions, config.rope_theta),
            *memory,
            scale=config.query_scale,
            is_visible=is_visible(queries, keys, self.window),
            logit_cap=config.attention_cap,
        )
        return self.o_proj(merge_heads(read))


class Past(NamedTuple):
    """One layer's cache and the slot that the next token's keys and values go to."""

    cache: KeysValues
    slot: jax.Array

    def updated(self, new: KeysValues) -> KeysValues:
        start = (0, 0, self.slot, 0)
        return KeysValues(
            *(
                jax.lax.dynamic_update_slice(old, fresh, start)
                for old, fresh in zip(self.cache, new, strict=True)
            )
        )


class GemmaLayer(nnx.Module):
    """Hugging Face calls the norm before the MLP `post_attention` in Gemma 1 only."""

    def __init__(self, config: GemmaConfig, window: int | None, *, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(config.width, config.norm_eps)

        self.input_layernorm = norm()
        self.self_attn = GemmaAttention(config, window, rngs=rngs)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm() if config.has_post_norms else None
        self.mlp = GemmaMLP(config, rngs=rngs)
        self.post_feedforward_layernorm = norm() if config.has_post_norms else None

    def __call__(
        self, x: jax.Array, queries: Tokens, keys: Tokens, past: Past | None
    ) -> tuple[jax.Array, KeysValues]:
        normed = self.input_layernorm(x)
        memory = self.self_attn.keys_values(normed, queries.positions)
        if past is not None:
            memory = past.updated(memory)
        read = self.self_attn(normed, memory, queries, keys)
        pre, post = self.pre_feedforward_layernorm, self.post_feedforward_layernorm
        if pre is None or post is None:
            x = x + read
            return x + self.mlp(self.post_attention_layernorm(x)), memory
        x = x + self.post_attention_layernorm(read)
        return x + post(self.mlp(pre(x))), memory


class Gemma(nnx.Module):
    """The decoder with its tied token table."""

    def __init__(self, config: GemmaConfig, *, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.layers = nnx.List(
            GemmaLayer(config, window, rngs=rngs) for window in config.windows
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.config = config

    def embed(self, token_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Token embeddings times `sqrt(width)`, which Gemma rounds to `dtype`."""
        factor = jnp.asarray(self.config.width**0.5, dtype)
        return self.embed_tokens(token_ids, dtype) * factor

    def __call__(
        self,
        x: jax.Array,
        queries: Tokens,
        *,
        keys: Tokens | None = None,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states `[b, t, d]` before the last norm, and all keys and values.

        Without a `cache` the tokens read each other. With one, their keys and values
        are written into it from `slot` on, and they read the whole cache, which `keys`
        describes.
        """
        new_cache = []
        for i, layer in enumerate(self.layers):
            past = None if cache is None else Past(cache[i], jnp.asarray(slot))
            x, memory = layer(x, queries, queries if keys is None else keys, past)
            new_cache.append(memory)
        return x, tuple(new_cache)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., d]` hidden states to `[..., vocab]` float32."""
        normed = self.norm(hidden)
        table = self.embed_tokens.weight[...]
        out = contract("...d,vd->...v", normed, table, jnp.float32)
        cap = self.config.final_cap
        return out if cap is None else cap * jnp.tanh(out / cap)
