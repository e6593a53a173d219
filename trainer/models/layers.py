"""The two layers that everything is made of, and how their parameters are made.

Flax's own layers draw keys from a counter that is part of the module. Traced, that
counter makes building the largest model take minutes, and drawing with `jax.random`
compiles a program for every shape. NumPy draws at once, and the same on all backends.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

LAYER_NORM_EPSILON = 1e-6

Shape = tuple[int, ...]
Init = Callable[[np.random.Generator, Shape], Float[np.ndarray, "..."]]


def normal(std: float) -> Init:
    return lambda rng, shape: np.float32(std) * rng.standard_normal(shape, np.float32)


def constant(value: float) -> Init:
    return lambda _, shape: np.full(shape, value, np.float32)


ZEROS, ONES = constant(0.0), constant(1.0)


class ParamMaker:
    """Makes parameters in the order of the calls: arrays, or shapes without a seed."""

    def __init__(self, rng_seed: int | None):
        self._rng_seed = rng_seed
        self._n_made = 0

    def __call__(self, init: Init, *shape: int) -> nnx.Param[Array]:
        if self._rng_seed is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
        self._n_made += 1
        rng = np.random.default_rng([self._rng_seed, self._n_made])
        return nnx.Param(jnp.asarray(init(rng, shape)))

    def kernel(self, inputs: Shape, outputs: Shape) -> nnx.Param[Array]:
        """Xavier-uniform, as the matrix from all inputs to all outputs that it is."""
        bound = math.sqrt(6 / (math.prod(inputs) + math.prod(outputs)))

        def uniform(rng: np.random.Generator, shape: Shape) -> Float[np.ndarray, "..."]:
            return (2 * rng.random(shape, np.float32) - 1) * np.float32(bound)

        return self(uniform, *inputs, *outputs)


class Linear(nnx.Module):
    """Contracts the last axes of its input, and adds a bias.

    The kernel has the shape `inputs + outputs`.
    """

    def __init__(
        self,
        inputs: Shape,
        outputs: Shape,
        make: ParamMaker,
        *,
        bias_init: Init = ZEROS,
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
