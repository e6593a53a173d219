"""Fine-grained retrieval: is the nearest image of the same class? By domain.

Pure functions of features. Protocol: UnED, Ypsilantis et al. 2023, arXiv:2309.01858,
whose recall@1 TIPS reports as the mean over eight domains.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trainer.evals.scores.features import normalize

_N_COSINES = 1 << 27  # held at a time


def recall_at_1(
    queries: Float[np.ndarray, "q d"],
    query_labels: Int[np.ndarray, "q"],
    index: Float[np.ndarray, "n d"],
    index_labels: Int[np.ndarray, "n"],
) -> float:
    """Returns the share of queries whose nearest image of the index has their class.

    An image of another class with the same cosine counts as nearer, so constant
    features find nothing. A class that the index lacks is not found.
    """
    nowhere = np.full(len(queries), -1)
    return _share(queries, query_labels, index, index_labels, nowhere)


def recall_at_1_of_others(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]
) -> float:
    """The same with every image as a query among all others."""
    return _share(features, labels, features, labels, np.arange(len(features)))


def _share(
    queries: Float[np.ndarray, "q d"],
    query_labels: Int[np.ndarray, "q"],
    index: Float[np.ndarray, "n d"],
    index_labels: Int[np.ndarray, "n"],
    own_rows: Int[np.ndarray, "q"],
) -> float:
    gallery = jnp.asarray(normalize(index), jnp.float32)
    queries = normalize(queries).astype(np.float32)
    size = max(1, _N_COSINES // len(index))
    n_found = 0
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        found = _is_found(
            gallery, index_labels, queries[part], query_labels[part], own_rows[part]
        )
        n_found += int(found.sum())
    return n_found / len(queries)


@jax.jit
def _is_found(
    gallery: Float[Array, "n d"],
    gallery_labels: Int[Array, "n"],
    queries: Float[Array, "q d"],
    query_labels: Int[Array, "q"],
    own_rows: Int[Array, "q"],
) -> Bool[Array, "q"]:
    with jax.default_matmul_precision("highest"):
        cosines = queries @ gallery.T
    is_own = own_rows[:, None] == jnp.arange(len(gallery))
    cosines = jnp.where(is_own, -jnp.inf, cosines)
    is_right = query_labels[:, None] == gallery_labels
    right = jnp.where(is_right, cosines, -jnp.inf).max(axis=1)
    wrong = jnp.where(is_right, -jnp.inf, cosines).max(axis=1)
    return right > wrong
