"""The few layers that SigLIP and Gemma share.

Weights keep the names and the orientation they have in Hugging Face files (`Linear` is
`[out, in]`), so that a file is read without renaming or transposing anything. Every
layer computes in the dtype of its input; normalization and softmax compute in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

# Fan-in is the last axis of a weight stored as [out, in].
LECUN_NORMAL = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
XAVIER_UNIFORM = nnx.initializers.xavier_uniform(in_axis=-1, out_axis=-2)


def contract(
    subscripts: str,
    x: jax.Array,
    weight: jax.Array,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    """An einsum with `weight` in the dtype of `x`, and by default the result too.

    float32 means float32 on every device: accelerators would round the inputs by
    default.
    """
    return jnp.einsum(
        subscripts,
        x,
        weight.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=out_dtype,
    )


class Linear(nnx.Module):
    """`x @ weight.T + bias`."""

    def __init__(self, n_in: int, n_out: int, *, rngs: nnx.Rngs, use_bias: bool = True):
        self.weight = nnx.Param(LECUN_NORMAL(rngs.params(), (n_out, n_in)))
        self.bias = nnx.Param(jnp.zeros(n_out)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # Flat rows: XLA's CPU backend is 4 times slower on the gradient of 3-d inputs.
        rows = contract("ri,oi->ro", x.reshape(-1, x.shape[-1]), self.weight[...])
        out = rows.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """Rows of a `[n_rows, width]` table."""

    def __init__(self, n_rows: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(LECUN_NORMAL(rngs.params(), (n_rows, width)))

    def __call__(self, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        return self.weight[...][ids].astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, in float32."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        centerd = x.astype(jnp.float32)
        centerd -= centerd.mean(axis=-1, keepdims=True)
        variance = jnp.square(centerd).mean(axis=-1, keepdims=True)
        unit = centerd * jax.lax.rsqrt(variance + self.eps)
        weight, bias = (p[...].astype(jnp.float32) for p in (self.weight, self.bias))
        return (unit * weight + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Gemma's normalization: unit root mean square, times `1 + weight`, in float32."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        exact = x.astype(jnp.float32)
        mean_square = jnp.square(exact).mean(axis=-1, keepdims=True)
        unit = exact * jax.lax.rsqrt(mean_square + self.eps)
        return (unit * (1 + self.weight[...].astype(jnp.float32))).astype(x.dtype)


def split_heads(x: jax.Array, n_heads: int) -> jax.Array:
    """`[b, t, n_heads * head_dim]` to `[b, t, n_heads, head_dim]`."""
    return x.reshape(*x.shape[:-1], n_heads, -1)


def as_memory(keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[b, s, n_kv_heads, d]` as they lie in a `Memory`."""
    return keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """`[b, t, n_heads, head_dim]` to `[b, t, n_heads * head_dim]`."""
    return x.reshape(*x.shape[:-2], -1)


class Memory(NamedTuple):
    """Keys and values that queries read, and which of them each query may see.

    Both lie as their products need them; the batch of a memory may be one that `n` rows
    of queries share each, in which case `q = n * b`.
    """

    keys: jax.Array  # [b, n_kv_heads, d, s]
    values: jax.Array  # [b, n_kv_heads, s, d]
    is_visible: jax.Array | None = None  # boolean [q, t, s]


def attend(
    queries: jax.Array,
    memories: Sequence[Memory],
    *,
    scale: float,
    logit_cap: float | None = None,
) -> jax.Array:
    """Attention of `[q, t, n_heads, d]` queries to all memories as if they were one.

    Query head `h` reads key head `h * n_kv_heads // n_heads`. `logit_cap` is Gemma 2's
    `cap * tanh(logits / cap)`. Returns the shape of `queries`.
    """
    n_queries, t, n_heads, d = queries.shape
    n_kv_heads = memories[0].keys.shape[1]
    n_groups = n_heads // n_kv_heads
    # The query heads that share a key head are rows of one matrix.
    rows = queries.reshape(n_queries, t, n_kv_heads, n_groups, d)
    rows = rows.transpose(0, 2, 3, 1, 4)
    rows = rows.reshape(n_queries, n_kv_heads, n_groups * t, d)
    logits = [_logits(rows, memory, n_groups, scale, logit_cap) for memory in memories]
    shares = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    ends = np.cumsum([part.shape[-1] for part in logits])
    parts = jnp.split(shares.astype(queries.dtype), ends[:-1], axis=-1)
    read = sum(
        _per_query(
            contract("bkrs,bksd->bkrd", _per_memory(part, memory), memory.values),
            n_queries,
        )
        for part, memory in zip(parts, memories, strict=True)
    )
    read = read.reshape(n_queries, n_kv_heads, n_groups, t, d)
    return read.transpose(0, 3, 1, 2, 4).reshape(queries.shape)


def _logits(
    rows: jax.Array,
    memory: Memory,
    n_groups: int,
    scale: float,
    logit_cap: float | None,
) -> jax.Array:
    """float32 `[q, n_kv_heads, rows, s]`, lowest where a query may not see."""
    products = contract(
        "bkrd,bkds->bkrs", _per_memory(rows, memory), memory.keys, jnp.float32
    )
    logits = scale * _per_query(products, len(rows))
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    if memory.is_visible is None:
        return logits
    is_row_visible = jnp.tile(memory.is_visible, (1, n_groups, 1))[:, None]
    return jnp.where(is_row_visible, logits, jnp.finfo(jnp.float32).min)


def _per_memory(rows: jax.Array, memory: Memory) -> jax.Array:
    """`[n * b, k, r, x]` to `[b, k, n * r, x]`: what shares a memory, as one matrix."""
    b = len(memory.keys)
    if len(rows) == b:
        return rows
    _, k, r, x = rows.shape
    return rows.reshape(b, -1, k, r, x).swapaxes(1, 2).reshape(b, k, -1, x)


def _per_query(rows: jax.Array, n_queries: int) -> jax.Array:
    """The inverse of `_per_memory`."""
    b, k, _, x = rows.shape
    if b == n_queries:
        return rows
    n = n_queries // b
    return rows.reshape(b, k, n, -1, x).swapaxes(1, 2).reshape(n_queries, k, -1, x)


def gelu(x: jax.Array) -> jax.Array:
    """The tanh approximation, `gelu_pytorch_tanh` in Hugging Face configurations."""
    return jax.nn.gelu(x, approximate=True)


def check_activation(name: str) -> None:
    """Raises ValueError unless a configuration's activation is the one written here."""
    if name != "gelu_pytorch_tanh":
        raise ValueError(f"hidden_act={name!r}: expected 'gelu_pytorch_tanh'")
