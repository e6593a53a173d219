"""The two layers that everything is made of, and how their parameters are made.

Flax's own layers draw keys from a counter that is part of the module. Under `jax.jit`
that counter is traced, and building the largest model takes minutes; this way it takes
a second, and the shapes alone take none.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

XAVIER = nnx.initializers.xavier_uniform()
ONES = nnx.initializers.ones
ZEROS = nnx.initializers.zeros
LAYER_NORM_EPSILON = 1e-6


class ParamMaker:
    """Makes parameters in the order of the calls: arrays, or shapes without a key."""

    def __init__(self, key: Key[Array, ""] | None):
        self._key = key
        self._n_made = 0

    def __call__(
        self, init: nnx.initializers.Initializer, *shape: int
    ) -> nnx.Param[Array]:
        return self._made(init, shape, shape)

    def kernel(
        self, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> nnx.Param[Array]:
        """Xavier-uniform, as the matrix from all inputs to all outputs that it is."""
        matrix = (math.prod(inputs), math.prod(outputs))
        return self._made(XAVIER, matrix, inputs + outputs)

    def _made(
        self,
        init: nnx.initializers.Initializer,
        initial: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> nnx.Param[Array]:
        if self._key is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
        self._n_made += 1
        key = jax.random.fold_in(self._key, self._n_made)
        return nnx.Param(init(key, initial, jnp.float32).reshape(shape))


class Linear(nnx.Module):
    """Contracts the last axes of its input, and adds a bias.

    The kernel has the shape `inputs + outputs`.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        make: ParamMaker,
        *,
        bias_init: nnx.initializers.Initializer = ZEROS,
    ):
        self._n_contracted = len(inputs)
        self.kernel = make.kernel(inputs, outputs)
        self.bias = make(bias_init, *outputs)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.tensordot(x, self.kernel[...], self._n_contracted) + self.bias[...]


class LayerNorm(nnx.Module):
    def __init__(self, width: int, make: ParamMaker):
        self.scale = make(ONES, width)
        self.bias = make(ZEROS, width)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x - x.mean(axis=-1, keepdims=True)
        variance = (x**2).mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return x * self.scale[...] + self.bias[...]
