"""Decoders on frozen features, a linear probe or DPT, and the loop that trains them.

Features go in as an encoder returned them, maps with some channels come out. Nothing
here knows what the maps mean; the tasks bring the losses.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from trainer.evaluation_config import EvaluationConfig
from trainer.models.dpt import DptConfig, DptDecoder
from trainer.models.layers import ParamMaker
from trainer.models.vit import VisionOutput

Maps = Float[Array, "b h w c"]
_ROWS = 64  # read at a time for the means
_INITIAL_STD = 0.01  # of the linear layer, as DINOv2's
_FINER = 4  # cells of a linear probe along a patch


class Decoder(NamedTuple):
    """Parameters, and a function from them and features to the maps of a batch."""

    params: Any
    apply: Callable[[Any, Any], Maps]


class Linear(NamedTuple):
    """A linear layer."""

    kernel: Float[Array, "d c"]
    bias: Float[Array, "c"]


def linear_cells(n_patches: int) -> int:
    """Returns the side of a linear probe's map."""
    return _FINER * n_patches


def dpt_cells(n_patches: int) -> int:
    """Returns the side of DPT's map; the coarsest level is half the patches."""
    return 16 * math.ceil(n_patches / 2)


def linear(features: tuple[np.ndarray, ...], n_outputs: int, rng_seed: int) -> Decoder:
    """Returns a linear layer on standardized patches, enlarged four times, as DINOv2's.

    `features` are patches, or patches and the vector of the image that each of them is
    joined with.
    """
    means, stds = zip(*map(_moments, features), strict=True)
    mean, std = jnp.concatenate(means), jnp.concatenate(stds)
    n_inputs = len(mean)

    def apply(params: Linear, batch: tuple[Array, ...]) -> Maps:
        x = (_join_features(batch) - mean) / std
        cells = x @ params.kernel + params.bias
        b, h, w, c = cells.shape
        return jax.image.resize(cells, (b, _FINER * h, _FINER * w, c), "bilinear")

    # Not from zero, where the bins of depth have no gradient.
    rng = np.random.default_rng(rng_seed)
    kernel = rng.normal(0, _INITIAL_STD, (n_inputs, n_outputs)).astype(np.float32)
    return Decoder(Linear(jnp.asarray(kernel), jnp.zeros(n_outputs)), apply)


def dpt(config: DptConfig, rng_seed: int) -> Decoder:
    """Returns an untrained DPT head."""
    graph, state = nnx.split(DptDecoder(config, ParamMaker(rng_seed)))

    def apply(params: dict, batch: list[VisionOutput]) -> Maps:
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), batch)
        return nnx.merge(graph, params)(exact)

    return Decoder(nnx.to_pure_dict(state), apply)


def fit(
    decoder: Decoder,
    loss: Callable[[Maps, Array], Float[Array, ""]],
    features: Any,
    targets: np.ndarray,
    settings: EvaluationConfig,
    shown: Callable[[Iterable], Iterator],
) -> Decoder:
    """Trains a decoder with AdamW; the learning rate is a cosine to 0.

    Images of a batch are drawn by `settings.rng_seed`, with repetition. `shown` shows
    the progress of the loop.
    """
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.n_steps)
    optimizer = optax.adamw(schedule, weight_decay=settings.weight_decay)

    @jax.jit
    def step(params: Any, state: Any, batch: Any, truth: Array) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: loss(decoder.apply(p, batch), truth))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = decoder.params, optimizer.init(decoder.params)
    rng = np.random.default_rng(settings.rng_seed)
    for _ in shown(range(settings.n_steps)):
        rows = np.sort(rng.integers(len(targets), size=settings.batch_size))
        batch = jax.tree.map(lambda x, rows=rows: x[rows], features)
        params, state = step(params, state, batch, targets[rows])
    return decoder._replace(params=params)


def predictor(decoder: Decoder) -> Callable[[Any], np.ndarray]:
    """Returns a compiled function from features to maps."""
    apply = jax.jit(decoder.apply)
    return lambda batch: jax.device_get(apply(decoder.params, batch))


def _join_features(batch: tuple[Array, ...]) -> Float[Array, "b h w d"]:
    patches, *vectors = (x.astype(jnp.float32) for x in batch)
    shape = patches.shape[:3]
    wide = [jnp.broadcast_to(v[:, None, None], (*shape, v.shape[-1])) for v in vectors]
    return jnp.concatenate([patches, *wide], axis=-1)


def _moments(
    features: np.ndarray,
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Mean and deviation of each channel, read in parts."""
    d = features.shape[-1]
    total, squares, count = np.zeros(d), np.zeros(d), 0
    for start in range(0, len(features), _ROWS):
        part = features[start : start + _ROWS].reshape(-1, d).astype(np.float64)
        total += part.sum(axis=0)
        squares += (part**2).sum(axis=0)
        count += len(part)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    std = np.sqrt(variance + 1e-5)  # as batch normalization, for constant channels
    return mean.astype(np.float32), std.astype(np.float32)
