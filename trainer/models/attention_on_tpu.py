"""Attention of rows of up to a few thousand tokens, as a Pallas kernel for TPUs.

All keys of a row fit into a core's memory, so the softmax is taken at once, and the
gradient needs queries, keys and values alone. Heads stay side by side, as the matrix
products before and after leave them: a kernel that takes heads apart, such as JAX's
own, spends more on moving them than all of this attention costs.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

N_LANES = 128  # of a register: blocks are as wide, or a multiple
MAX_TOKENS = 512  # of the rows that are mixed in one program
MAX_QUERIES = 256  # whose weights exist at a time

Row = Float[Array, "b t d"]
_TO_KEYS = (((1,), (1,)), ((), ()))  # x y^T
_OVER_QUERIES = (((0,), (0,)), ((), ()))  # x^T y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def mix(
    n_heads: int,
    is_interpreted: bool,
    query: Row,
    key: Row,
    value: Row,
    is_valid: Bool[Array, "b t"] | None,
) -> Row:
    """Mixes values by softmax(query key / sqrt(c)), each head by itself.

    `is_valid` is False on padding.
    """
    inputs = query, key, value
    return _call(_mix_block, 1, n_heads, is_interpreted, inputs, is_valid)[0]


def _mix_forward(
    n_heads: int, is_interpreted: bool, query: Row, key: Row, value: Row, is_valid: Any
) -> tuple[Row, tuple]:
    mixed = mix(n_heads, is_interpreted, query, key, value, is_valid)
    return mixed, (query, key, value, is_valid)


def _mix_backward(
    n_heads: int, is_interpreted: bool, kept: tuple, slope: Row
) -> tuple[Row, Row, Row, None]:
    query, key, value, is_valid = kept
    inputs = query, key, value, slope
    slopes = _call(_slope_block, 3, n_heads, is_interpreted, inputs, is_valid)
    return *slopes, None


mix.defvjp(_mix_forward, _mix_backward)


def _call(
    block: Any,
    n_outputs: int,
    n_heads: int,
    is_interpreted: bool,
    inputs: tuple[Row, ...],
    is_valid: Bool[Array, "b t"] | None,
) -> list[Row]:
    """Runs `block` on a few rows and heads at a time."""
    b, t, d = inputs[0].shape
    n_rows = max(n for n in range(1, max(MAX_TOKENS // t, 1) + 1) if b % n == 0)
    width = _block_width(n_heads, d // n_heads)
    rows = pl.BlockSpec((n_rows, t, width), lambda row, head: (row, 0, head))
    keys = pl.BlockSpec((n_rows, 1, t), lambda row, head: (row, 0, 0))
    masks = [] if is_valid is None else [is_valid[:, None].astype(jnp.float32)]
    shape = jax.ShapeDtypeStruct((b, t, d), inputs[0].dtype)
    n_products = 2 if n_outputs == 1 else 5
    n_bytes = (len(inputs) + n_outputs) * shape.size * shape.dtype.itemsize
    return pl.pallas_call(
        functools.partial(block, d // n_heads),
        grid=(b // n_rows, d // width),
        in_specs=[*[keys] * len(masks), *[rows] * len(inputs)],
        out_specs=[rows] * n_outputs,
        out_shape=[shape] * n_outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * n_products * b * t * t * d,
            transcendentals=b * n_heads * t * t,
            bytes_accessed=n_bytes,
        ),
        interpret=is_interpreted,
    )(*masks, *inputs)


def _block_width(n_heads: int, n_channels: int) -> int:
    """The fewest whole heads that fill registers; all of them if none do."""
    counts = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
    return next(
        (n * n_channels for n in counts if n * n_channels % N_LANES == 0),
        n_heads * n_channels,
    )


def _mix_block(n_channels: int, *refs: Any) -> None:
    *masks, query, key, value, mixed = refs
    for row, head in _rows_and_heads(query, n_channels):
        mask = _mask(masks, row)
        for queries in _parts(query.shape[1]):
            at = row, queries, head
            weights = _weights(query[at], key[row, :, head], mask)
            found = _sums(weights.astype(value.dtype), value[row, :, head])
            mixed[at] = found.astype(mixed.dtype)


def _slope_block(n_channels: int, *refs: Any) -> None:
    """The gradient: p (dp - sum p dp) is that of the logits."""
    *masks, query, key, value, slope, dquery, dkey, dvalue = refs
    scale = 1 / math.sqrt(n_channels)
    for row, head in _rows_and_heads(query, n_channels):
        mask = _mask(masks, row)
        keys, values = key[row, :, head], value[row, :, head]
        of_keys = of_values = jnp.zeros(keys.shape, jnp.float32)
        for queries in _parts(query.shape[1]):
            at = row, queries, head
            weights = _weights(query[at], keys, mask)
            of_weights = _sums(slope[at], values, _TO_KEYS)
            mean = (weights * of_weights).sum(axis=1, keepdims=True)
            of_logits = weights * (of_weights - mean) * scale
            of_logits = of_logits.astype(keys.dtype)
            dquery[at] = _sums(of_logits, keys).astype(dquery.dtype)
            of_keys += _sums(of_logits, query[at], _OVER_QUERIES)
            of_values += _sums(weights.astype(keys.dtype), slope[at], _OVER_QUERIES)
        dkey[row, :, head] = of_keys.astype(dkey.dtype)
        dvalue[row, :, head] = of_values.astype(dvalue.dtype)


def _mask(masks: list, row: int) -> Float[Array, "1 t"] | None:
    return masks[0][row] if masks else None


def _rows_and_heads(ref: Any, n_channels: int) -> Iterator[tuple[int, slice]]:
    n_rows, _, width = ref.shape
    for row in range(n_rows):
        for first in range(0, width, n_channels):
            yield row, slice(first, first + n_channels)


def _parts(n_tokens: int) -> Iterator[slice]:
    """Queries in a few parts of nearly equal size, which start at whole registers."""
    n_parts = -(-n_tokens // MAX_QUERIES)
    size = n_tokens if n_parts == 1 else -(-n_tokens // n_parts // 16) * 16
    for first in range(0, n_tokens, size):
        yield slice(first, min(first + size, n_tokens))


def _weights(
    query: Float[Array, "q c"],
    key: Float[Array, "t c"],
    mask: Float[Array, "1 t"] | None,
) -> Float[Array, "q t"]:
    logits = _sums(query, key, _TO_KEYS) * (1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        logits = jnp.where(mask > 0, logits, jnp.finfo(jnp.float32).min)
    masses = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return masses / masses.sum(axis=1, keepdims=True)


def _sums(
    x: Float[Array, "n k"],
    y: Float[Array, "k m"],
    dimensions: tuple = (((1,), (0,)), ((), ())),
) -> Float[Array, "n m"]:
    """Products with sums in float32."""
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
