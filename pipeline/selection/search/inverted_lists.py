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
_MAX_TRAINING = 2**20  # vectors, unless the lists need more; all of smaller sets
_ROWS_PER_BLOCK = 65_536  # as FAISS adds them, so that lists are the same
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


def write(vectors: np.ndarray, queries: np.ndarray, path: str) -> Recall:
    """Writes an index that finds the nearest vector of at least 99 % of the queries.

    It searches as few lists as this recall takes, or all lists. `vectors`, float32
    [n, d], may be a file that is mapped into memory: at most a million of them are
    read at a time, or 39 for each list if that is more.
    """
    n_lists = min(int(4 * math.sqrt(len(vectors))), len(vectors) // _MIN_PER_LIST)
    index = _train(vectors, max(n_lists, 1))
    _write_lists(index, vectors, path)
    return _search_enough_lists(index, vectors, queries, path)


def _train(vectors: np.ndarray, n_lists: int) -> faiss.IndexIVFFlat:
    dim = vectors.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(dim), dim, n_lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.seed = _RNG_SEED
    index.cp.niter = _N_ITERATIONS
    n_training = max(_MAX_TRAINING, _MIN_PER_LIST * n_lists)
    if len(vectors) > n_training:
        rng = np.random.default_rng(_RNG_SEED)
        chosen = rng.choice(len(vectors), n_training, replace=False, shuffle=False)
        vectors = vectors[np.sort(chosen)]
    index.train(np.ascontiguousarray(vectors))
    index.make_direct_map()
    return index


def _write_lists(index: faiss.IndexIVFFlat, vectors: np.ndarray, path: str) -> None:
    """Writes what `faiss.write_index` does once all vectors are added, list by list."""
    starts = range(0, len(vectors), _ROWS_PER_BLOCK)
    found = [
        index.quantizer.assign(vectors[i : i + _ROWS_PER_BLOCK], 1) for i in starts
    ]
    assigned = np.concatenate(found).ravel()
    order = np.argsort(assigned, kind="stable")
    sizes = np.bincount(assigned, minlength=index.nlist)
    ends = np.cumsum(sizes)
    offset = np.empty(len(order), np.int64)
    offset[order] = np.arange(len(order)) - np.repeat(ends - sizes, sizes)
    with open(path, "wb") as file:
        file.write(_beginning(index, len(vectors)))
        file.write((assigned << 32 | offset).tobytes())
        file.write(b"ilar" + np.array([index.nlist, index.code_size]).tobytes())
        file.write(_sizes(sizes))
        for rows in np.split(order, ends[:-1]):
            file.write(vectors[rows].tobytes())
            file.write(rows.tobytes())


def _beginning(index: faiss.IndexIVFFlat, n_vectors: int) -> bytes:
    """The file of an index of `n_vectors` up to the first entry of its direct map."""
    empty = faiss.serialize_index(index).tobytes()
    at_end = b"ilar" + np.array([index.nlist, index.code_size]).tobytes()
    at_end += b"sprs" + np.array([0]).tobytes()
    assert empty.endswith(np.array([0]).tobytes() + at_end), faiss.__version__
    n_bytes = np.array([n_vectors]).tobytes()
    before_map = empty[: -len(at_end) - len(n_bytes)]
    return before_map[:8] + n_bytes + before_map[16:] + n_bytes


def _sizes(sizes: np.ndarray) -> bytes:
    """The sizes of all lists, or of those with a vector if these are at most half."""
    used = np.flatnonzero(sizes)
    if len(used) > len(sizes) // 2:
        return b"full" + np.array([len(sizes), *sizes]).tobytes()
    pairs = np.stack([used, sizes[used]], axis=1)
    return b"sprs" + np.array([pairs.size, *pairs.ravel()]).tobytes()


def _search_enough_lists(
    index: faiss.IndexIVFFlat, vectors: np.ndarray, queries: np.ndarray, path: str
) -> Recall:
    """Writes the number of lists to search into the file; returns the recall."""
    exact = np.full((len(queries), 1), -np.inf, np.float32)
    for start in range(0, len(vectors), _ROWS_PER_BLOCK):
        some = np.ascontiguousarray(vectors[start : start + _ROWS_PER_BLOCK])
        found, _ = faiss.knn(queries, some, 1, metric=faiss.METRIC_INNER_PRODUCT)
        exact = np.maximum(exact, found)
    written = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    assert isinstance(written, faiss.IndexIVFFlat)
    written.nprobe = 1
    while (recall := _recall(written, exact, queries)) < _MIN_RECALL:
        if written.nprobe == written.nlist:
            break
        written.nprobe = min(2 * written.nprobe, written.nlist)
    index.nprobe = written.nprobe
    with open(path, "r+b") as file:
        file.write(_beginning(index, len(vectors)))
    return Recall(len(vectors), index.nlist, index.nprobe, len(queries), recall)


def _recall(index: faiss.Index, exact: np.ndarray, queries: np.ndarray) -> float:
    found, _ = index.search(queries, 1)
    return float((found >= exact - _ROUNDING).mean())
