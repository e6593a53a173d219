"""Gemma and Gemma 2 decoders, with the key-value cache kept by the caller.

In: embeddings, positions and a visibility mask. Out: hidden states, and the keys and
values of every layer. One class serves both families; `GemmaConfig` holds what differs:
Gemma 2 normalizes also after attention and MLP, caps logits, and alternates
sliding-window layers.

Attributes carry the names of Hugging Face's `GemmaModel`. Source: arXiv:2403.08295,
arXiv:2408.00118.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import transformers
from flax import nnx
from jax.typing import DTypeLike

from pipeline.models.layers import (
    Embedding,
    Linear,
    Memory,
    RMSNorm,
    as_memory,
    attend,
    check_activation,
    contract,
    gelu,
    merge_heads,
    split_heads,
)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Settings of the forward pass; `windows[i]` is None if layer `i` sees all."""

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
    0: (
        "q_proj",
        "k_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
        "embed_tokens",
        "lm_head",
    ),
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
        "lm_head": config.vocab_size,
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
    """One layer's keys `[b, n_kv_heads, head_dim, s]` and values `[b, n_kv_heads, s,
    head_dim]`."""

    keys: jax.Array
    values: jax.Array


Cache = tuple[KeysValues, ...]  # of the prefix, one a layer


class AnswerCache(NamedTuple):
    """Keys and values of answer tokens, of all layers in one array each.

    They change at every step of the loop; XLA updates two arrays in place where it
    would copy many.
    """

    keys: jax.Array  # [l, q, n_kv_heads, head_dim, t]
    values: jax.Array  # [l, q, n_kv_heads, t, head_dim]

    def write(self, layer: int, new: KeysValues, slot: jax.Array) -> "AnswerCache":
        keys = jax.lax.dynamic_update_slice(
            self.keys, new.keys[None], (layer, 0, 0, 0, slot)
        )
        values = jax.lax.dynamic_update_slice(
            self.values, new.values[None], (layer, 0, 0, slot, 0)
        )
        return AnswerCache(keys, values)

    def of_layer(self, layer: int) -> KeysValues:
        return KeysValues(self.keys[layer], self.values[layer])


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


class Turns(NamedTuple):
    """Sines and cosines of rotary positions, float32 `[b, t, 1, head_dim / 2]`."""

    sin: jax.Array
    cos: jax.Array


def turns(positions: jax.Array, head_dim: int, theta: float) -> Turns:
    """Turns of `[b, t]` positions, for all layers: XLA would repeat them in each."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jax.lax.optimization_barrier(Turns(jnp.sin(angles), jnp.cos(angles)))


def rotate(x: jax.Array, turns: Turns) -> jax.Array:
    """Rotary positions of `[b, t, n_heads, d]`, halves convention, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (
        first * turns.cos - second * turns.sin,
        second * turns.cos + first * turns.sin,
    )
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

    def keys_values(self, x: jax.Array, turns: Turns) -> KeysValues:
        n_kv_heads = self.config.n_kv_heads
        keys = rotate(split_heads(self.k_proj(x), n_kv_heads), turns)
        return KeysValues(*as_memory(keys, split_heads(self.v_proj(x), n_kv_heads)))

    def __call__(
        self,
        x: jax.Array,
        queries: Tokens,
        turns: Turns,
        read: Sequence[tuple[KeysValues, Tokens]],
    ) -> jax.Array:
        """`read` are the memories, each with its tokens."""
        config = self.config
        q = split_heads(self.q_proj(x), config.n_heads)
        memories = [
            Memory(*memory, is_visible(queries, tokens, self.window))
            for memory, tokens in read
        ]
        mixed = attend(
            rotate(q, turns),
            memories,
            scale=config.query_scale,
            logit_cap=config.attention_cap,
        )
        return self.o_proj(merge_heads(mixed))


class Past(NamedTuple):
    """The past of answer tokens: `q` rows, `q / b` of them per row of the prefix."""

    prefix: Cache
    prefix_tokens: Tokens  # [q, s]
    answer: AnswerCache
    answer_tokens: Tokens  # [q, t]


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

    def keys_values(self, x: jax.Array, turns: Turns) -> KeysValues:
        return self.self_attn.keys_values(self.input_layernorm(x), turns)

    def __call__(
        self,
        x: jax.Array,
        queries: Tokens,
        turns: Turns,
        read: Sequence[tuple[KeysValues, Tokens]],
    ) -> jax.Array:
        mixed = self.self_attn(self.input_layernorm(x), queries, turns, read)
        pre, post = self.pre_feedforward_layernorm, self.post_feedforward_layernorm
        if pre is None or post is None:
            x = x + mixed
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.post_attention_layernorm(mixed)
        return x + post(self.mlp(pre(x)))


class Gemma(nnx.Module):
    """The decoder with its token table, which is its output head unless it has one."""

    def __init__(
        self, config: GemmaConfig, *, rngs: nnx.Rngs, has_own_head: bool = False
    ):
        self.embed_tokens = Embedding(config.vocab_size, config.width, rngs=rngs)
        if has_own_head:
            self.lm_head = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.layers = nnx.List(
            GemmaLayer(config, window, rngs=rngs) for window in config.windows
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.config = config

    def embed(self, token_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Token embeddings times `sqrt(width)`, which Gemma rounds to `dtype`."""
        factor = jnp.asarray(self.config.width**0.5, dtype)
        return self.embed_tokens(token_ids, dtype) * factor

    def __call__(self, x: jax.Array, tokens: Tokens) -> tuple[jax.Array, Cache]:
        """Hidden states `[b, t, d]` before the last norm, and all keys and values."""
        here = turns(tokens.positions, self.config.head_dim, self.config.rope_theta)
        cache = []
        for layer in self.layers:
            memory = layer.keys_values(x, here)
            x = layer(x, tokens, here, [(memory, tokens)])
            cache.append(memory)
        return x, tuple(cache)

    def read_token(
        self, x: jax.Array, past: Past, slot: jax.Array
    ) -> tuple[jax.Array, AnswerCache]:
        """The same for the answer token of `slot`, `[q, 1, d]`, behind the past."""
        answer = past.answer
        token = Tokens(
            *(
                jax.lax.dynamic_slice_in_dim(part, slot, 1, 1)
                for part in past.answer_tokens
            )
        )
        here = turns(token.positions, self.config.head_dim, self.config.rope_theta)
        for i, layer in enumerate(self.layers):
            answer = answer.write(i, layer.keys_values(x, here), slot)
            written = (answer.of_layer(i), past.answer_tokens)
            x = layer(x, token, here, [(past.prefix[i], past.prefix_tokens), written])
        return x, answer

    def empty_answer(self, n_rows: int, n_tokens: int, dtype: DTypeLike) -> AnswerCache:
        """Room for answers of `n_tokens`."""
        config = self.config
        shape = (len(config.windows), n_rows, config.n_kv_heads)
        return AnswerCache(
            jnp.zeros((*shape, config.head_dim, n_tokens), dtype),
            jnp.zeros((*shape, n_tokens, config.head_dim), dtype),
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[..., d]` hidden states to `[..., vocab]` float32."""
        normed = self.norm(hidden)
        head = self.lm_head if hasattr(self, "lm_head") else self.embed_tokens
        table = head.weight[...]
        out = contract("...d,vd->...v", normed, table, jnp.float32)
        cap = self.config.final_cap
        return out if cap is None else cap * jnp.tanh(out / cap)
