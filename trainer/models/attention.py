"""Self-attention: by kernels that never store the weights, or plainly.

On a TPU that is the splash kernel of JAX, and on an NVIDIA GPU that of cuDNN. A device
says by itself which it is, also one that a program is only compiled for. Elsewhere, in
float32, and outside of `trainer.distributed.sharding.tracing_for`, weights are stored.
"""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from trainer.config import AttentionKind, ComputeConfig, TransformerConfig
from trainer.distributed.sharding import BATCH_AXES
from trainer.models.layers import (
    PLAIN,
    Linear,
    ParamMaker,
    einsum_to_float32,
    float32_in_full,
)

MIXED = "mixed_values"  # name of what attention returns, for `Remat`
N_LANES = 128  # the kernel of the TPU takes multiples of this many tokens
MAX_QUERIES, MAX_KEYS = 512, 1152  # in a block of that kernel

Heads = Float[Array, "b t heads c"]


class Kernel(Protocol):
    """Mixes values by softmax(query key / sqrt(c)); `is_valid` is False on padding."""

    def __call__(
        self, query: Heads, key: Heads, value: Heads, is_valid: Any, /
    ) -> Heads: ...


class Attention(nnx.Module):
    """Multi-head self-attention in both directions that ignores padded keys."""

    def __init__(
        self,
        config: TransformerConfig,
        make: ParamMaker,
        compute: ComputeConfig = PLAIN,
    ):
        self._kind = compute.attention
        heads = (config.n_heads, config.width // config.n_heads)
        self.query = Linear((config.width,), heads, make)
        self.key = Linear((config.width,), heads, make)
        self.value = Linear((config.width,), heads, make)
        self.out = Linear(heads, (config.width,), make)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        kernel = find_kernel(self._kind, x.dtype)
        if kernel is not None:
            heads = self.query(x), self.key(x), self.value(x)
            return self.out(by_device(kernel, *heads, is_valid))
        # Heads before tokens: `jax.nn.dot_product_attention`, which takes them after
        # tokens, needs 1.5 times as long on a CPU.
        value = jnp.swapaxes(self.value(x), 1, 2)
        weights = self.weights(x, is_valid=is_valid).astype(value.dtype)
        with float32_in_full(x.dtype):
            mixed = jnp.einsum("bhqk,bhkc->bhqc", weights, value)
        return self.out(jnp.swapaxes(checkpoint_name(mixed, MIXED), 1, 2))

    def weights(
        self,
        x: Float[Array, "b t d"],
        n_queries: int | None = None,
        is_valid: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b heads q t"]:
        """Returns the attention weights of the first tokens, float32; rows sum to 1."""
        query = jnp.swapaxes(self.query(x[:, :n_queries]), 1, 2)
        key = jnp.swapaxes(self.key(x), 1, 2)
        logits = einsum_to_float32("bhqc,bhkc->bhqk", query, key)
        logits = logits / math.sqrt(query.shape[-1])
        if is_valid is not None:
            lowest = jnp.finfo(logits.dtype).min
            logits = jnp.where(is_valid[:, None, None, :], logits, lowest)
        return jax.nn.softmax(logits)


def find_kernel(kind: AttentionKind, dtype: jnp.dtype) -> Kernel | None:
    """Returns the kernel of the devices that are traced for, or None."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if kind is AttentionKind.PLAIN or device is None or dtype != jnp.bfloat16:
        return None
    return kernel_of(device)


def kernel_of(device: jax.sharding.AbstractDevice) -> Kernel | None:
    """Returns the kernel of a device, or None if it has none."""
    if device.platform == "tpu":
        return splash
    return cudnn if device.device_kind.startswith("NVIDIA") else None


def by_device(
    kernel: Kernel,
    query: Heads,
    key: Heads,
    value: Heads,
    is_valid: Bool[Array, "b t"] | None,
) -> Heads:
    """Calls the kernel on each device with the rows that it has of the batch.

    XLA cannot divide a kernel: it would gather the batch on all devices.
    """
    rows = PartitionSpec(BATCH_AXES)
    specs = (rows, rows, rows, None if is_valid is None else rows)
    call = jax.shard_map(kernel, in_specs=specs, out_specs=rows, check_vma=False)
    return call(query, key, value, is_valid)


def is_mixed_values(primitive: Any, *_: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint`: keeps what attention mixes.

    With a kernel, it keeps what the kernel's gradient is computed from as well.
    """
    is_named = primitive.name == "name" and params["name"] == MIXED
    return is_named or primitive.name.startswith("dot_product_attention_fwd")


def cudnn(
    query: Heads, key: Heads, value: Heads, is_valid: Bool[Array, "b t"] | None
) -> Heads:
    """The kernel of cuDNN. Padding comes last; a row of nothing else has one key."""
    b, t, *_ = query.shape
    is_odd = t % 2  # JAX has no gradient for an odd number of tokens
    lengths = None
    if is_valid is not None:
        lengths = jnp.maximum(is_valid.sum(axis=1, dtype=jnp.int32), 1)
    elif is_odd:
        lengths = jnp.full(b, t, jnp.int32)
    even = [
        jnp.pad(x, ((0, 0), (0, is_odd), (0, 0), (0, 0))) for x in (query, key, value)
    ]
    mixed = jax.nn.dot_product_attention(
        *even, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return mixed[:, :t]


def splash(
    query: Heads,
    key: Heads,
    value: Heads,
    is_valid: Bool[Array, "b t"] | None,
    *,
    is_interpreted: bool = False,
) -> Heads:
    """The kernel of JAX for TPUs.

    Rows of few tokens are put into one block, where each sees only itself: two of a
    local crop or a text. Tokens are padded to whole blocks.
    """
    b, t, n_heads, c = query.shape
    n_rows = max(n for n in range(1, max(N_LANES // t, 1) + 1) if b % n == 0)
    n_tokens = -(-n_rows * t // N_LANES) * N_LANES

    def to_blocks(x: Array) -> Array:
        rows = x.reshape(b // n_rows, n_rows * t, *x.shape[2:])
        missing = (0, n_tokens - n_rows * t)
        return jnp.pad(rows, ((0, 0), missing, *[(0, 0)] * (rows.ndim - 2)))

    attend = _splash_kernel(n_heads, n_tokens, is_interpreted=is_interpreted)
    scaled = query * (1 / math.sqrt(c))
    blocks = [jnp.swapaxes(to_blocks(x), 1, 2) for x in (scaled, key, value)]
    segments = _segments((b, t), n_rows, n_tokens, is_valid)
    mixed = jax.vmap(attend)(*blocks, segments)
    mixed = jnp.swapaxes(mixed, 1, 2)[:, : n_rows * t]
    return mixed.reshape(b, t, n_heads, c)


def _segments(
    shape: tuple[int, int],
    n_rows: int,
    n_tokens: int,
    is_valid: Bool[Array, "b t"] | None,
) -> splash_attention_kernel.SegmentIds:
    """Numbers of rows in their block: tokens see keys of their own number alone.

    Tokens that fill the block have a number of their own, and padding has -1 as keys.
    """
    b, t = shape
    numbers = jnp.repeat(jnp.arange(n_rows, dtype=jnp.int32), t)
    missing = n_tokens - len(numbers)
    numbers = jnp.pad(numbers, (0, missing), constant_values=n_rows)
    queries = jnp.broadcast_to(numbers, (b // n_rows, n_tokens))
    if is_valid is None:
        return splash_attention_kernel.SegmentIds(queries, queries)
    is_key = is_valid.reshape(b // n_rows, n_rows * t)
    is_key = jnp.pad(is_key, ((0, 0), (0, missing)), constant_values=True)
    return splash_attention_kernel.SegmentIds(queries, jnp.where(is_key, queries, -1))


def _splash_kernel(
    n_heads: int, n_tokens: int, *, is_interpreted: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    """Attention of one block of rows, `[heads, t, c]`; it does not divide logits."""
    n_queries, n_keys = (_block(n_tokens, most) for most in (MAX_QUERIES, MAX_KEYS))
    mask = splash_attention_mask.FullMask((n_tokens, n_tokens))
    return splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * n_heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=n_queries,
            block_kv=n_keys,
            block_q_dkv=n_queries,
            block_kv_dkv=n_keys,
            use_fused_bwd_kernel=True,
        ),
        residual_checkpoint_name=MIXED,
        interpret=is_interpreted,
    )


def _block(n_tokens: int, most: int) -> int:
    """The largest size of a block that divides the tokens evenly."""
    sizes = range(N_LANES, min(most, n_tokens) + 1, N_LANES)
    return max(size for size in sizes if n_tokens % size == 0)
