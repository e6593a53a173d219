"""Indexes of sets that are too large to be compared with image by image.

In: the unit vectors of a set, and vectors to search with. Out: an index with inverted
lists, one for each cluster of the set, that looks into the nearest lists only. How many
is found out by comparing with an exact search, and the recall is written down.
"""

import dataclasses
import json
import math

import faiss
import numpy as np

_MIN_RECALL = 0.99
_N_ITERATIONS = 10
_RNG_SEED = 0
_MIN_PER_LIST = 39  # below it FAISS warns that k-means has too little to go by
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
    """An index that finds the nearest vector for nearly all of the queries.

    Searches as few lists as a recall of 0.99 takes; all of them, if it takes all.
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
    """Sets how many lists are searched, and tells what that finds."""
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
