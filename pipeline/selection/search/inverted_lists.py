"""Indexes of sets that are too large for an exact search.

In: the unit vectors of a set, and queries. Out: an index with inverted lists, one for
each cluster of the set, which searches only the nearest lists; and its recall. The
number of lists to search is chosen by comparison with an exact search of the queries.
"""

import dataclasses
import json
import math

import faiss
import numpy as np

_MIN_RECALL = 0.99
_N_ITERATIONS = 10
_RNG_SEED = 0
_MIN_PER_LIST = 39  # with fewer FAISS warns that k-means has too little data
_ROUNDING = 1e-5  # of a product of two unit vectors in single precision


@dataclasses.dataclass(frozen=True)
class Recall:
    """How often an index finds the nearest image of a set, measured on a sample."""

    n_vectors: int
    n_lists: int
    n_lists_searched: int
    n_sampled: int
    recall: float

    def to_bytes(self) -> bytes:
        """As a JSON file."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"


def build(vectors: np.ndarray, queries: np.ndarray) -> tuple[faiss.Index, Recall]:
    """Builds an index that finds the nearest vector of at least 99 % of the queries.

    It searches as few lists as this recall takes, or all lists.
    """
    n_lists = min(int(4 * math.sqrt(len(vectors))), len(vectors) // _MIN_PER_LIST)
    index = _train(vectors, max(n_lists, 1))
    index.add(vectors)
    index.make_direct_map()
    return index, _search_enough_lists(index, vectors, queries)


def _train(vectors: np.ndarray, n_lists: int) -> faiss.IndexIVFFlat:
    dim = vectors.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = _RNG_SEED
    index.cp.niter = _N_ITERATIONS
    index.train(vectors)
    return index


def _search_enough_lists(
    index: faiss.IndexIVFFlat, vectors: np.ndarray, queries: np.ndarray
) -> Recall:
    """Sets the number of lists to search; returns the recall."""
    exact, _ = faiss.knn(queries, vectors, 1, metric=faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 1
    while (recall := _recall(index, exact, queries)) < _MIN_RECALL:
        if index.nprobe == index.nlist:
            break
        index.nprobe = min(2 * index.nprobe, index.nlist)
    return Recall(len(vectors), index.nlist, index.nprobe, len(queries), recall)


def _recall(index: faiss.Index, exact: np.ndarray, queries: np.ndarray) -> float:
    found, _ = index.search(queries, 1)
    return float((found >= exact - _ROUNDING).mean())
