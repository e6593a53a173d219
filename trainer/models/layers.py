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
        if self._key is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
        self._n_made += 1
        key = jax.random.fold_in(self._key, self._n_made)
        return nnx.Param(init(key, shape, jnp.float32))


class Linear(nnx.Module):
    """Contracts the last axes of its input, and adds a bias.

    The kernel has the shape `inputs + outputs` and starts xavier-uniform, as the
    matrix from all inputs to all outputs that it is.
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
        self.kernel = make(_flattened(inputs), *inputs, *outputs)
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


def _flattened(inputs: tuple[int, ...]) -> nnx.initializers.Initializer:
    """Xavier-uniform over the product of the inputs and that of the outputs."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        n_inputs = math.prod(inputs)
        matrix = XAVIER(key, (n_inputs, math.prod(shape) // n_inputs), dtype)
        return matrix.reshape(shape)

    return init
