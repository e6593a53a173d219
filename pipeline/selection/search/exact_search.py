"""The nearest of some unit vectors by a plain search, exact and the same everywhere.

FAISS's products of single precision hang on the order of summation, which differs with
the size of the call. So they only propose, with a bound on their rounding; products in
double precision, rounded to single, decide.
"""

import faiss
import numpy as np

_N_MORE = 2  # candidates beyond k, to see where rounding cannot matter any more
_PAIRS_PER_BLOCK = 256  # 1 MB in double precision at 512 dimensions: stays in a cache
_PRODUCTS_PER_BLOCK = 2**21  # 8 MB


def nearest(queries: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity and position of the vector nearest to each query; the first of equals.

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
    """Of the pairs of each query, the most similar, of equal ones the first place."""
    order = np.lexsort((place, -similarity, query))
    _, first = np.unique(query[order], return_index=True)
    return similarity[order[first]], place[order[first]]


def candidates(
    queries: np.ndarray, vectors: np.ndarray, k: int, floor: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, vector and similarity of pairs: of each query at least its k nearest.

    All are unit vectors. FAISS proposes pairs in single precision; where its rounding
    could hide one of the nearest, all that are as near count. Similarities are then
    taken in double precision and rounded to float32, so that they do not depend on
    which vectors share a call.

    Of many calls with one `floor`, float32 [n] and -inf at first, each gives only what
    may be among the k nearest of all: `floor` rises to what k vectors of one call have
    reached. A call that is repeated does not raise it further.
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
    """Bound on the error of a float32 product of two unit vectors, of any order.

    It holds what rounding the exact product to float32 changes as well. Source: Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    n, unit_roundoff = dim + 2, 2.0**-24
    return n * unit_roundoff / (1 - n * unit_roundoff)


def _keep(mask: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(array[mask] for array in arrays)


def _as_near(
    queries: np.ndarray, vectors: np.ndarray, bound: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the chosen queries whose product reaches the bound of the query."""
    found = [(chosen[:0], chosen[:0])]
    n_queries = max(1, _PRODUCTS_PER_BLOCK // len(vectors))
    for start in range(0, len(chosen), n_queries):
        mine = chosen[start : start + n_queries]
        # Another order of summation than that of FAISS: rounds to another side.
        slack = 2 * _rounding(vectors.shape[1])
        is_near = queries[mine] @ vectors.T >= bound[mine, None] - slack
        query, place = np.nonzero(is_near)
        found.append((mine[query], place))
    query_parts, place_parts = zip(*found, strict=True)
    return np.concatenate(query_parts), np.concatenate(place_parts)


def cosines(
    queries: np.ndarray, vectors: np.ndarray, query: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """Of the pairs (query[i], place[i]), in double precision: float32."""
    similarity = np.empty(len(query), np.float32)
    for start in range(0, len(query), _PAIRS_PER_BLOCK):
        mine = slice(start, start + _PAIRS_PER_BLOCK)
        left = queries[query[mine]].astype(np.float64)
        right = vectors[place[mine]].astype(np.float64)
        similarity[mine] = np.einsum("nd,nd->n", left, right).clip(-1, 1)
    return similarity
