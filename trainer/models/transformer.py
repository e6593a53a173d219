"""Pre-norm transformer blocks, shared by both towers.

Modules hold parameters and nothing else: no random state, no dropout. Attributes bear
the names of the released checkpoints, so that a parameter's path is its key there.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from trainer.config import FeedForward, TransformerConfig

LAYER_NORM_EPSILON = 1e-6

_KERNEL_INIT = nnx.initializers.xavier_uniform()
_MLP_BIAS_INIT = nnx.initializers.normal(1e-6)


class Transformer(nnx.Module):
    """`n_layers` blocks, one after the other."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self._n_layers = config.n_layers
        for i in range(config.n_layers):
            setattr(self, f"encoderblock_{i}", EncoderBlock(config, rngs))

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b t d"]:
        """`is_valid` is False on padding; None means that nothing is padded."""
        for i in range(self._n_layers):
            x = getattr(self, f"encoderblock_{i}")(x, is_valid)
        return x


class EncoderBlock(nnx.Module):
    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.LayerNorm_0 = layer_norm(config.width, rngs)
        self.MultiHeadDotProductAttention_0 = Attention(config, rngs)
        self.LayerNorm_1 = layer_norm(config.width, rngs)
        if config.feed_forward is FeedForward.SWIGLU:
            self.FFNSwiGluFused_0 = SwiGlu(config, rngs)
        else:
            self.MlpBlock_0 = Mlp(config, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x), is_valid)
        is_swiglu = hasattr(self, "FFNSwiGluFused_0")
        feed_forward = self.FFNSwiGluFused_0 if is_swiglu else self.MlpBlock_0
        return x + feed_forward(self.LayerNorm_1(x), is_valid)


class Attention(nnx.Module):
    """Multi-head self-attention in both directions, blind to padded keys."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        heads = (config.n_heads, config.width // config.n_heads)
        self.query = _linear(config.width, heads, rngs)
        self.key = _linear(config.width, heads, rngs)
        self.value = _linear(config.width, heads, rngs)
        self.out = nnx.LinearGeneral(
            heads, config.width, axis=(-2, -1), kernel_init=_KERNEL_INIT, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        mask = None if is_valid is None else is_valid[:, None, None, :]
        mixed = jax.nn.dot_product_attention(
            self.query(x), self.key(x), self.value(x), mask=mask
        )
        return self.out(mixed)


class Mlp(nnx.Module):
    """Two linear layers. Hidden units and outputs of padding are 0."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self._is_gelu = config.feed_forward is FeedForward.GELU
        self.Dense_0 = _dense(config.width, config.mlp_dim, rngs)
        self.Dense_1 = _dense(config.mlp_dim, config.width, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        hidden = self.Dense_0(x)
        hidden = jax.nn.gelu(hidden) if self._is_gelu else jax.nn.relu(hidden)
        return _zero_padding(self.Dense_1(_zero_padding(hidden, is_valid)), is_valid)


class SwiGlu(nnx.Module):
    """Gated MLP; its hidden width is two thirds of `mlp_dim`, up to a multiple of 8."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        hidden = -(-config.mlp_dim * 2 // 3 // 8) * 8
        self.Dense_0 = _dense(config.width, hidden, rngs)
        self.Dense_1 = _dense(config.width, hidden, rngs)
        self.Dense_2 = _dense(hidden, config.width, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t d"]:
        hidden = jax.nn.silu(self.Dense_0(x)) * self.Dense_1(x)
        return _zero_padding(self.Dense_2(_zero_padding(hidden, is_valid)), is_valid)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, rngs=rngs)


def _linear(n_inputs: int, n_outputs: tuple[int, int], rngs: nnx.Rngs) -> nnx.Module:
    return nnx.LinearGeneral(n_inputs, n_outputs, kernel_init=_KERNEL_INIT, rngs=rngs)


def _dense(n_inputs: int, n_outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        n_inputs,
        n_outputs,
        kernel_init=_KERNEL_INIT,
        bias_init=_MLP_BIAS_INIT,
        rngs=rngs,
    )


def _zero_padding(
    x: Float[Array, "b t d"], is_valid: Bool[Array, "b t"] | None
) -> Float[Array, "b t d"]:
    return x if is_valid is None else jnp.where(is_valid[..., None], x, 0)
