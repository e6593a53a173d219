"""k-NN classification: the nearest training images vote. A pure function of features.

Votes weigh exp(cosine / 0.07), as in DINO (Caron et al. 2021, arXiv:2104.14294, after
Wu et al. 2018, arXiv:1805.01978). TIPS names neither weight nor k; the k are DINOv2's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from trainer.evals.scores.features import normalize

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_N_COSINES = 1 << 27  # held at a time


def accuracies(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
) -> dict[str, float]:
    """Returns the share of test images whose class wins the vote, per k."""
    votes = predictions(train, train_labels, test)
    return {
        f"accuracy_k{k}": float((found == test_labels).mean())
        for k, found in votes.items()
    }


def predictions(
    train: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m d"],
) -> dict[int, Int[np.ndarray, "m"]]:
    """Returns k to the class of each test image. Labels count from 0.

    Among training images with the same cosine the first ones count; among classes with
    the same votes the lowest number wins. With fewer images than the lowest k, all
    vote.
    """
    ks = [k for k in KS if k <= len(train)] or [len(train)]
    cosines, rows = nearest(train, test, ks[-1])
    weights = np.exp(cosines.astype(np.float64) / TEMPERATURE)
    labels = train_labels[rows]
    n_classes = int(train_labels.max()) + 1
    return {k: _count_votes(weights[:, :k], labels[:, :k], n_classes) for k in ks}


def nearest(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], k: int
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """Returns cosines and rows of the `k` training images nearest to a test image."""
    gallery = jnp.asarray(normalize(train), jnp.float32)
    queries = normalize(test).astype(np.float32)
    size = max(1, _N_COSINES // len(train))
    parts = [
        jax.device_get(_top(gallery, queries[start : start + size], k=k))
        for start in range(0, len(queries), size)
    ]
    cosines, rows = zip(*parts, strict=True)
    return np.concatenate(cosines), np.concatenate(rows)


@functools.partial(jax.jit, static_argnames="k")
def _top(
    gallery: Float[Array, "n d"], queries: Float[Array, "m d"], *, k: int
) -> tuple[Float[Array, "m k"], Int[Array, "m k"]]:
    with jax.default_matmul_precision("highest"):
        return jax.lax.top_k(queries @ gallery.T, k)


def _count_votes(
    weights: Float[np.ndarray, "m k"], labels: Int[np.ndarray, "m k"], n_classes: int
) -> Int[np.ndarray, "m"]:
    found = [
        np.bincount(one_labels, one_weights, n_classes).argmax()
        for one_labels, one_weights in zip(labels, weights, strict=True)
    ]
    return np.array(found)
