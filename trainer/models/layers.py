"""The two layers that everything is made of, and how their parameters are made.

Parameters are float32. Every layer casts them to the type of its input and computes in
that; normalization and softmax compute in float32.

Flax's own layers draw keys from a counter that is part of the module. Tracing that
counter makes building the largest model take minutes, and drawing with `jax.random`
compiles one program per shape. NumPy draws at once, and the same on all backends.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from trainer.config import ComputeConfig

LAYER_NORM_EPSILON = 1e-6
PLAIN = ComputeConfig()  # the default
_STD_OF_CUT_NORMAL = 0.87962566103423978  # of a normal distribution, cut off at 2 sigma

Shape = tuple[int, ...]
Init = Callable[[np.random.Generator, Shape], Float[np.ndarray, "..."]]


def normal(std: float) -> Init:
    """Draws from a normal distribution of mean 0."""
    return lambda rng, shape: np.float32(std) * rng.standard_normal(shape, np.float32)


def lecun_normal(n_inputs: int) -> Init:
    """Draws of variance 1 / n_inputs, from a normal distribution cut off at 2 sigma.

    As Flax's layers start by default, which the authors' Scenic code relies on.
    """
    std = np.float32(n_inputs**-0.5 / _STD_OF_CUT_NORMAL)

    def draw(rng: np.random.Generator, shape: Shape) -> Float[np.ndarray, "..."]:
        values = rng.standard_normal(shape, np.float32)
        while (is_wide := np.abs(values) > 2).any():
            values[is_wide] = rng.standard_normal(is_wide.sum(), np.float32)
        return std * values

    return draw


def constant(value: float) -> Init:
    """Fills with one value."""
    return lambda _, shape: np.full(shape, value, np.float32)


ZEROS, ONES = constant(0.0), constant(1.0)


class ParamMaker:
    """Makes parameters in the order of the calls; without a seed, only their shapes.

    If it is lazy, a parameter is a function that draws it, so that a large model need
    not exist at once.
    """

    def __init__(self, rng_seed: int | None, *, is_lazy: bool = False):
        self._rng_seed = rng_seed
        self._is_lazy = is_lazy
        self._n_made = 0

    def __call__(self, init: Init, *shape: int) -> nnx.Param[Array]:
        if self._rng_seed is None:
            return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))
        self._n_made += 1
        rng = np.random.default_rng([self._rng_seed, self._n_made])
        draw = functools.partial(init, rng, shape)
        return nnx.Param(draw if self._is_lazy else jnp.asarray(draw()))

    def kernel(self, inputs: Shape, outputs: Shape) -> nnx.Param[Array]:
        """Makes a Xavier-uniform kernel: one matrix from all inputs to all outputs."""
        bound = math.sqrt(6 / (math.prod(inputs) + math.prod(outputs)))

        def uniform(rng: np.random.Generator, shape: Shape) -> Float[np.ndarray, "..."]:
            return (2 * rng.random(shape, np.float32) - 1) * np.float32(bound)

        return self(uniform, *inputs, *outputs)


def float32_in_full(dtype: jnp.dtype) -> AbstractContextManager:
    """Makes matrix products of float32 exact float32 inside, gradients included.

    By default, accelerators would round their inputs. Other types are left alone.
    """
    if dtype != jnp.float32:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def einsum_to_float32(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`jnp.einsum` of two factors of one type, with sums in float32.

    The products of its gradient are of that type too. JAX would take them in float32,
    the type of the sums, which an accelerator multiplies at a fraction of its rate.
    """
    if x.dtype == jnp.float32:
        with float32_in_full(x.dtype):
            return jnp.einsum(spec, x, y)
    return _einsum_of_low_precision(spec, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_of_low_precision(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _einsum_forward(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> tuple[Float[Array, "..."], tuple]:
    return _einsum_of_low_precision(spec, x, y), (x, y)


def _einsum_backward(spec: str, factors: tuple, slope: Float[Array, "..."]) -> tuple:
    _, pull_back = jax.vjp(functools.partial(jnp.einsum, spec), *factors)
    return pull_back(slope.astype(factors[0].dtype))


_einsum_of_low_precision.defvjp(_einsum_forward, _einsum_backward)


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scales rows to length 1; a row of zeros stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def n_matrix_weights(module: nnx.Module) -> int:
    """Number of weights in the matrices of a module: its multiply-adds per token."""
    params = nnx.to_pure_dict(nnx.state(module))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(math.prod(x.shape) for path, x in leaves if path[-1].key == "kernel")


class Linear(nnx.Module):
    """Contracts the last axes of its input with a kernel, and adds a bias.

    The kernel has the shape `inputs + outputs`; it starts Xavier-uniform by default.
    """

    def __init__(
        self,
        inputs: Shape,
        outputs: Shape,
        make: ParamMaker,
        *,
        kernel_init: Init | None = None,
        bias_init: Init = ZEROS,
    ):
        self._n_contracted = len(inputs)
        if kernel_init is None:
            self.kernel = make.kernel(inputs, outputs)
        else:
            self.kernel = make(kernel_init, *inputs, *outputs)
        self.bias = make(bias_init, *outputs)

    def __call__(
        self, x: Float[Array, "..."], out_dtype: DTypeLike | None = None
    ) -> Float[Array, "..."]:
        """Sums in `out_dtype`, by default the type of the input."""
        dtype = x.dtype if out_dtype is None else out_dtype
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(dtype)
        # As matrices: otherwise the gradient takes up to 3 times as long on a CPU.
        kernel = kernel.reshape(-1, bias.size)
        rows = x.reshape(-1, len(kernel))
        if dtype == jnp.float32:
            out = einsum_to_float32("nd,dk->nk", rows, kernel)
        else:
            out = rows @ kernel
        out = out + bias.reshape(-1)
        return out.reshape(*x.shape[: x.ndim - self._n_contracted], *bias.shape)


class LayerNorm(nnx.Module):
    """Normalizes the last axis to mean 0 and variance 1, then scales and shifts it."""

    def __init__(self, width: int, make: ParamMaker):
        self.scale = make(ONES, width)
        self.bias = make(ZEROS, width)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        exact = x.astype(jnp.float32)
        exact = exact - exact.mean(axis=-1, keepdims=True)
        variance = (exact**2).mean(axis=-1, keepdims=True)
        exact = exact * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return (exact * self.scale[...] + self.bias[...]).astype(x.dtype)
