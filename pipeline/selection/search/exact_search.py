"""Exact nearest neighbors among unit vectors, the same on every machine.

In: queries and vectors. Out: cosines and positions. FAISS's products in single
precision depend on the order of summation, which changes with the size of a call. So
FAISS only proposes candidates, within a bound on its rounding; cosines in double
precision, rounded to single, decide.
"""

import faiss
import numpy as np

_N_MORE = 2  # candidates beyond k, to see whether rounding can matter
_PAIRS_PER_BLOCK = 256  # 1 MB in double precision at 512 dimensions: stays in a cache
_PRODUCTS_PER_BLOCK = 2**21  # 8 MB


def nearest(queries: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and position of the vector nearest to each query; the first of equals.

    Args:
      queries: unit vectors, float32 [n, d].
      vectors: unit vectors, float32 [m, d], m > 0.

    Returns:
      Cosines in [-1, 1], float32 [n], and positions, int64 [n].
    """
    return best(*candidates(queries, vectors, 1))


def best(
    query: np.ndarray, place: np.ndarray, similarity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar pair of each query; of equal ones, the first position."""
    order = np.lexsort((place, -similarity, query))
    _, first = np.unique(query[order], return_index=True)
    return similarity[order[first]], place[order[first]]


def candidates(
    queries: np.ndarray, vectors: np.ndarray, k: int, floor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of query and vector, with at least the k nearest vectors of each query.

    Returns the positions of queries and of vectors, and cosines, one per pair. FAISS
    proposes pairs in single precision; where its rounding could hide one of the
    nearest, all vectors that are as near are returned. Cosines are then computed in
    double precision and rounded to float32, so they do not depend on which vectors
    share a call.

    Several calls may share one `floor`, float32 [n], -inf at first: each then returns
    only what may be among the k nearest of all calls, and raises `floor` to the cosine
    that k of its vectors reach. Repeating a call does not raise it further.
    """
    n_proposed = min(k + _N_MORE, len(vectors))
    products, proposed = faiss.knn(
        queries, vectors, n_proposed, metric=faiss.METRIC_INNER_PRODUCT
    )
    bound = np.full(len(queries), -np.inf, np.float32)
    if k <= n_proposed:
        bound = products[:, k - 1] - np.float32(2 * _rounding(vectors.shape[1]))
    if floor is not None:
        bound = np.maximum(floor, bound, out=floor)
    query, column = np.nonzero(products >= bound[:, None])
    place = proposed[query, column]
    if n_proposed < len(vectors):
        is_open = products[:, -1] >= bound
        query, place = _keep(~is_open[query], query, place)
        more_query, more_place = _as_near(
            queries, vectors, bound, np.flatnonzero(is_open)
        )
        query = np.concatenate([query, more_query])
        place = np.concatenate([place, more_place])
    return query, place, cosines(queries, vectors, query, place)


def _rounding(dim: int) -> float:
    """A bound on the error of a float32 product of two unit vectors, in any order.

    It includes the rounding of the exact product to float32. Source: Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.1.
    """
    n, unit_roundoff = dim + 2, 2.0**-24
    return n * unit_roundoff / (1 - n * unit_roundoff)


def _keep(mask: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(array[mask] for array in arrays)


def _as_near(
    queries: np.ndarray, vectors: np.ndarray, bound: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the chosen queries whose product reaches the bound of their query."""
    found = [(chosen[:0], chosen[:0])]
    n_queries = max(1, _PRODUCTS_PER_BLOCK // len(vectors))
    for start in range(0, len(chosen), n_queries):
        mine = chosen[start : start + n_queries]
        # NumPy sums in another order than FAISS, so its rounding adds up.
        slack = 2 * _rounding(vectors.shape[1])
        is_near = queries[mine] @ vectors.T >= bound[mine, None] - slack
        query, place = np.nonzero(is_near)
        found.append((mine[query], place))
    query_parts, place_parts = zip(*found, strict=True)
    return np.concatenate(query_parts), np.concatenate(place_parts)


def cosines(
    queries: np.ndarray, vectors: np.ndarray, query: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Cosines of the pairs (query[i], place[i]) of unit vectors: float32, in [-1, 1].

    Computed in double precision, so that they do not depend on which pairs share a
    call.

    >>> vectors = np.array([[1, 0], [0.6, 0.8]], np.float32)
    >>> cosines(vectors, vectors, np.array([0, 0]), np.array([0, 1]))
    array([1. , 0.6], dtype=float32)
    """
    similarity = np.empty(len(query), np.float32)
    for start in range(0, len(query), _PAIRS_PER_BLOCK):
        mine = slice(start, start + _PAIRS_PER_BLOCK)
        left = queries[query[mine]].astype(np.float64)
        right = vectors[place[mine]].astype(np.float64)
        similarity[mine] = np.einsum("nd,nd->n", left, right).clip(-1, 1)
    return similarity
