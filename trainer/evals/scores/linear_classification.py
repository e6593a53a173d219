"""Linear classification: logistic regression on frozen features, by L-BFGS.

Pure functions of features. The protocol is CLIP's (arXiv:2103.00020, appendix A.3): the
weight of L2 is chosen on a part of the training images held out, then all of them are
fitted. TIPS does not say how it trains its linear layer.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

L2_WEIGHTS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 5  # every fifth image, of a random order
MAX_STEPS = 200
_SMALLEST_GRADIENT = 1e-6
_CHUNK = 4096  # images whose logits are held at a time


class Layer(NamedTuple):
    """A linear classifier."""

    kernel: Float[Array, "d classes"]
    bias: Float[Array, "classes"]


class Images(NamedTuple):
    """Images in chunks; those that fill up the last chunk have the weight 0."""

    features: Float[Array, "chunks chunk d"]
    labels: Int[Array, "chunks chunk"]
    weights: Float[Array, "chunks chunk"]


def accuracy(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    rng_seed: int = 0,
) -> dict[str, float]:
    """Returns the share of test images classified correctly, and the L2 weight."""
    train, test = standardize(train, test)
    n_classes = int(max(train_labels.max(), test_labels.max())) + 1
    order = np.random.default_rng(rng_seed).permutation(len(train))
    is_held_out = np.zeros(len(train), bool)
    is_held_out[order[::HELD_OUT]] = True

    def held_out_accuracy(l2: float) -> float:
        layer = fit(train, train_labels, n_classes, l2, ~is_held_out)
        return _share(layer, train[is_held_out], train_labels[is_held_out])

    best = max(L2_WEIGHTS, key=held_out_accuracy)  # the strongest of equals
    layer = fit(train, train_labels, n_classes, best)
    return {"accuracy": _share(layer, test, test_labels), "l2": best}


def fit(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    n_classes: int,
    l2: float,
    is_used: np.ndarray | None = None,
) -> Layer:
    """Minimizes mean cross-entropy in nats, plus l2 / 2 times the squared kernel."""
    n, d = features.shape
    weights = np.ones(n) if is_used is None else is_used
    images = Images(*map(_to_chunks, (features, labels, weights / weights.sum())))
    start = Layer(jnp.zeros((d, n_classes)), jnp.zeros(n_classes))
    return _fit(start, images, l2)


def standardize(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Scales both to mean 0 and deviation 1 of the training images.

    Raises ValueError unless all are finite.
    """
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("features are not finite")
    mean, std = train.mean(axis=0), np.maximum(train.std(axis=0), 1e-6)
    return (train - mean) / std, (test - mean) / std


def _to_chunks(rows: np.ndarray) -> Array:
    size = min(len(rows), _CHUNK)
    padding = [(0, -len(rows) % size), *[(0, 0)] * (rows.ndim - 1)]
    return jnp.asarray(np.pad(rows, padding)).reshape(-1, size, *rows.shape[1:])


def _loss(layer: Layer, images: Images, l2: Float[Array, ""]) -> Float[Array, ""]:
    @jax.checkpoint
    def add(total: Float[Array, ""], chunk: Images) -> tuple[Float[Array, ""], None]:
        logits = chunk.features @ layer.kernel + layer.bias
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, chunk.labels)
        return total + (nats * chunk.weights).sum(), None

    mean, _ = jax.lax.scan(add, jnp.zeros(()), images)
    return mean + l2 / 2 * (layer.kernel**2).sum()


@jax.jit
def _fit(start: Layer, images: Images, l2: Float[Array, ""]) -> Layer:
    solver = optax.lbfgs()
    loss = functools.partial(_loss, images=images, l2=l2)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def improve(carry: tuple) -> tuple:
        layer, state, _, step = carry
        value, gradient = value_and_grad(layer, state=state)
        updates, state = solver.update(
            gradient, state, layer, value=value, grad=gradient, value_fn=loss
        )
        layer = optax.apply_updates(layer, updates)
        return layer, state, optax.tree.norm(gradient), step + 1

    def is_going_on(carry: tuple) -> Array:
        return (carry[2] > _SMALLEST_GRADIENT) & (carry[3] < MAX_STEPS)

    with jax.default_matmul_precision("highest"):
        first = (start, solver.init(start), jnp.inf, 0)
        return jax.lax.while_loop(is_going_on, improve, first)[0]


def _share(
    layer: Layer, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]
) -> float:
    kernel, bias = map(np.asarray, layer)
    return float(((features @ kernel + bias).argmax(axis=1) == labels).mean())
