"""Pre-norm transformer blocks, shared by both towers.

Modules hold parameters and nothing else: no random state. Attributes have the names of
the released checkpoints, so a parameter's path is its key there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, Key

from trainer.config import ComputeConfig, FeedForward, Remat, TransformerConfig
from trainer.distributed.sharding import shard_rows
from trainer.models.attention import Attention, is_mixed_values
from trainer.models.layers import (
    PLAIN,
    LayerNorm,
    Linear,
    ParamMaker,
    n_matrix_weights,
    normal,
)

_MLP_BIAS_INIT = normal(1e-6)

_POLICIES = {
    # Not the products of attention either: they are cheap, and quadratic in tokens.
    Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    Remat.DOTS_AND_ATTENTION: jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, is_mixed_values
    ),
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nnx.Module):
    """`n_layers` blocks, one after the other.

    With `scan_layers` they are compiled once: the parameters, whose paths do not
    change, are stacked inside the step, and a loop on the device goes over the layers.
    """

    def __init__(
        self, config: TransformerConfig, make: ParamMaker, compute: ComputeConfig
    ):
        self._n_layers = config.n_layers
        self._drop_path = config.drop_path
        self._remat = compute.remat
        self._is_scanned = compute.scan_layers
        for i in range(config.n_layers):
            setattr(self, f"encoderblock_{i}", EncoderBlock(config, make, compute))

    @property
    def blocks(self) -> list["EncoderBlock"]:
        """The blocks in order."""
        return [getattr(self, f"encoderblock_{i}") for i in range(self._n_layers)]

    def __call__(
        self,
        x: Float[Array, "b t d"],
        is_valid: Bool[Array, "b t"] | None = None,
        keys: Key[Array, "b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """`is_valid` is False on padding; None means that nothing is padded.

        With `keys`, one for each row, the blocks drop branches as `Drop` says.
        """
        blocks = self.blocks
        graph = nnx.graphdef(blocks[0])
        params = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
        rates = self._drop_rates(is_on=keys is not None)

        def apply(
            x: Float[Array, "b t d"], layer: tuple
        ) -> tuple[Float[Array, "b t d"], None]:
            block, rate = layer
            drop = None if keys is None or rate is None else Drop(keys, *rate)
            return shard_rows(nnx.merge(graph, block)(x, is_valid, drop)), None

        # The loop already keeps XLA from merging the second computation with the first.
        apply = _rematerialize(apply, self._remat, prevent_cse=not self._is_scanned)
        x = shard_rows(x)
        if self._is_scanned:
            layers = zip(params, rates, strict=True)
            stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *layers)
            return jax.lax.scan(apply, x, stacked)[0]
        for layer in zip(params, rates, strict=True):
            x, _ = apply(x, layer)
        return x

    def _drop_rates(self, *, is_on: bool) -> list[tuple[Array, Array] | None]:
        """Number and rate of each block; None if it drops nothing."""
        n = self._n_layers
        if not is_on or not self._drop_path:
            return [None] * n
        rates = np.linspace(0, self._drop_path, n, dtype=np.float32)
        return [(jnp.int32(i), jnp.asarray(rate)) for i, rate in enumerate(rates)]


def _rematerialize(apply: Callable, remat: Remat, *, prevent_cse: bool) -> Callable:
    """Returns the same function, which keeps other values for its gradient."""
    if remat is Remat.NONE:
        return apply
    return jax.checkpoint(apply, policy=_POLICIES[remat], prevent_cse=prevent_cse)


class Drop(NamedTuple):
    """Stochastic depth in one block: rows lose residual branches at random.

    The rate grows linearly from 0 in the first block to `drop_path` in the last one,
    and what is left is scaled up so that the mean stays. Chance depends on the row's
    key, the block and the branch alone, so modules need no random state.
    Source: Huang et al. 2016, arXiv:1603.09382; scaled as in timm and DINOv2.
    """

    keys: Key[Array, "b"]
    block: Int32[Array, ""]
    rate: Float[Array, ""]

    def __call__(
        self, branch: Float[Array, "b t d"], number: int
    ) -> Float[Array, "b t d"]:
        """`number` is that of the branch in its block."""

        def is_kept(key: Key[Array, ""]) -> Bool[Array, ""]:
            key = jax.random.fold_in(key, 2 * self.block + number)
            return jax.random.bernoulli(key, 1 - self.rate)

        kept = jax.vmap(is_kept)(self.keys)[:, None, None]
        return jnp.where(kept, branch / (1 - self.rate).astype(branch.dtype), 0)


class EncoderBlock(nnx.Module):
    """Self-attention and a feed-forward network, each in a residual branch."""

    def __init__(
        self,
        config: TransformerConfig,
        make: ParamMaker,
        compute: ComputeConfig = PLAIN,
    ):
        self.LayerNorm_0 = LayerNorm(config.width, make)
        self.MultiHeadDotProductAttention_0 = Attention(config, make, compute)
        self.LayerNorm_1 = LayerNorm(config.width, make)
        if config.feed_forward is FeedForward.SWIGLU:
            self.FFNSwiGluFused_0 = SwiGlu(config, make)
        else:
            self.MlpBlock_0 = Mlp(config, make)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        is_valid: Bool[Array, "b t"] | None,
        drop: "Drop | None" = None,
    ) -> Float[Array, "b t d"]:
        branch = self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x), is_valid)
        x = x + (branch if drop is None else drop(branch, 0))
        branch = self._feed_forward(self.LayerNorm_1(x), is_valid)
        return x + (branch if drop is None else drop(branch, 1))

    def attend_to_self(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The block if every token attended only to itself: its value, projected.

        Source: MaskCLIP, Zhou et al. 2022, arXiv:2112.01071.
        """
        attention = self.MultiHeadDotProductAttention_0
        x = x + attention.out(attention.value(self.LayerNorm_0(x)))
        return x + self._feed_forward(self.LayerNorm_1(x), None)

    def attention(
        self, x: Float[Array, "b t d"], n_queries: int
    ) -> Float[Array, "b heads q t"]:
        """The attention weights of the first `n_queries` tokens of the input."""
        attention = self.MultiHeadDotProductAttention_0
        return attention.weights(self.LayerNorm_0(x), n_queries)

    @property
    def _feed_forward(self) -> "Mlp | SwiGlu":
        is_swiglu = hasattr(self, "FFNSwiGluFused_0")
        return self.FFNSwiGluFused_0 if is_swiglu else self.MlpBlock_0


class Mlp(nnx.Module):
    """Two linear layers. Hidden units and outputs of padding are 0."""

    def __init__(self, config: TransformerConfig, make: ParamMaker):
        self._is_gelu = config.feed_forward is FeedForward.GELU
        self.Dense_0 = _dense(config.width, config.mlp_dim, make)
        self.Dense_1 = _dense(config.mlp_dim, config.width, make)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        hidden = self.Dense_0(x)
        hidden = jax.nn.gelu(hidden) if self._is_gelu else jax.nn.relu(hidden)
        return _zero_padding(self.Dense_1(_zero_padding(hidden, is_valid)), is_valid)


class SwiGlu(nnx.Module):
    """Gated MLP; its hidden width is two thirds of `mlp_dim`, up to a multiple of 8."""

    def __init__(self, config: TransformerConfig, make: ParamMaker):
        hidden = (config.mlp_dim * 2 // 3 + 7) // 8 * 8
        self.Dense_0 = _dense(config.width, hidden, make)
        self.Dense_1 = _dense(config.width, hidden, make)
        self.Dense_2 = _dense(hidden, config.width, make)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        hidden = jax.nn.silu(self.Dense_0(x)) * self.Dense_1(x)
        return _zero_padding(self.Dense_2(_zero_padding(hidden, is_valid)), is_valid)


def _dense(n_inputs: int, n_outputs: int, make: ParamMaker) -> Linear:
    return Linear((n_inputs,), (n_outputs,), make, bias_init=_MLP_BIAS_INIT)


def _zero_padding(
    x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
) -> Float[Array, "b t d"]:
    return x if is_valid is None else jnp.where(is_valid[..., None], x, 0)


def transformer_flops(config: TransformerConfig, n_tokens: int) -> int:
    """Operations of all blocks on `n_tokens` tokens, forward."""
    weights = n_matrix_weights(EncoderBlock(config, ParamMaker(None)))
    attention = 2 * n_tokens * config.width  # scores, and the mixing of values
    return 2 * config.n_layers * n_tokens * (weights + attention)
