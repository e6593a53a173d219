"""Self-attention: by kernels that never store the weights, or plainly.

On a TPU that is `trainer.models.attention_on_tpu`, and on an NVIDIA GPU cuDNN. A device
says by itself which it is, also one that a program is only compiled for. Elsewhere, in
float32, and outside of `trainer.distributed.sharding.tracing_for`, weights are stored.
"""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from trainer.config import AttentionKind, ComputeConfig, TransformerConfig
from trainer.distributed.sharding import BATCH_AXES
from trainer.models import attention_on_tpu
from trainer.models.layers import (
    PLAIN,
    Linear,
    ParamMaker,
    einsum_to_float32,
    float32_in_full,
)

MIXED = "mixed_values"  # name of what attention returns, for `Remat`

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
        return pallas
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


def pallas(
    query: Heads,
    key: Heads,
    value: Heads,
    is_valid: Bool[Array, "b t"] | None,
    *,
    is_interpreted: bool = False,
) -> Heads:
    """The kernel of `trainer.models.attention_on_tpu`."""
    flat = [x.reshape(*x.shape[:2], -1) for x in (query, key, value)]
    mixed = attention_on_tpu.mix(query.shape[2], is_interpreted, *flat, is_valid)
    return checkpoint_name(mixed, MIXED).reshape(query.shape)
