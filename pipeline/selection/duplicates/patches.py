"""Which vectors of a part of a cell need to be compared with one another.

In: unit vectors. Out: blocks of rows and columns, such that each pair of
near-duplicates is in one of them. Vectors near one another make up a patch. Those of
two patches are compared only near their border. What is left out cannot be a
near-duplicate, so patches change what a comparison costs and nothing else.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.selection.duplicates.cell_splits import cosine_to_distance
from pipeline.selection.duplicates.members import mix
from pipeline.selection.search.embeddings import normalize

_PATCH_SIZE = 64  # vectors, on average
_LEAST_PATCHES, _MOST_PATCHES = 8, 128
_SAMPLED = np.uint64(4)  # of so many vectors one takes part in k-means
_N_ROUNDS = 2  # of k-means
_SLACK = 1e-4  # far above the rounding of a product in single precision
_ROWS_PER_BLOCK = 256  # of which half the products are not needed: those before a row
_PRODUCTS_PER_BLOCK = 2**22  # 16 MB of float32, and a few times as much beside

Block = tuple[np.ndarray, np.ndarray]


def blocks_to_compare(
    vectors: np.ndarray, max_similarity: float, is_visitor: np.ndarray | None = None
) -> Iterator[Block]:
    """Yields positions of rows and of columns, which begin with the rows: int64.

    Args:
      vectors: unit vectors, float32 [n, d].
      max_similarity: the cosine that pairs of near-duplicates exceed.
      is_visitor: which need not be compared with one another, bool [n].
    """
    if is_visitor is None:
        is_visitor = np.zeros(len(vectors), bool)
    n_patches = min(len(vectors) // _PATCH_SIZE, _MOST_PATCHES)
    if n_patches >= _LEAST_PATCHES:
        is_sampled = mix(np.arange(len(vectors))) % _SAMPLED == 0
        centers = _find_centers(vectors[is_sampled], n_patches)
        patch, is_near = _enter_patches(vectors, centers, max_similarity)
        sizes = np.bincount(patch, minlength=n_patches)
        hosts = np.bincount(patch[~is_visitor], minlength=n_patches)
        near, near_hosts = is_near.sum(axis=0), is_near[~is_visitor].sum(axis=0)
        n_products = np.sum(hosts * (near - hosts / 2))
        n_products += np.sum((sizes - hosts) * (near_hosts - hosts))
        n_hosts = np.sum(hosts)
        if n_products < n_hosts * (len(vectors) - n_hosts / 2) / 2:
            for number in range(n_patches):
                is_own = patch == number
                others = is_near[:, number] & ~is_own
                yield from _blocks(
                    np.flatnonzero(is_own & ~is_visitor),
                    np.flatnonzero(others | (is_own & is_visitor)),
                )
                yield from _blocks(
                    np.flatnonzero(is_own & is_visitor),
                    np.flatnonzero(others & ~is_visitor),
                )
            return
    yield from _blocks(np.flatnonzero(~is_visitor), np.flatnonzero(is_visitor))


def _blocks(own: np.ndarray, others: np.ndarray) -> Iterator[Block]:
    """Compares a patch with itself and with others."""
    n_columns = max(len(own) + len(others), 1)
    n_rows = max(1, min(_ROWS_PER_BLOCK, _PRODUCTS_PER_BLOCK // n_columns))
    for start in range(0, len(own), n_rows):
        columns = np.concatenate([own[start:], others])
        yield own[start : start + n_rows], columns


def _find_centers(vectors: np.ndarray, n: int) -> np.ndarray:
    """Centers of patches, by k-means: float32 [n, d]."""
    centers = vectors[np.arange(n) * len(vectors) // n]
    for _ in range(_N_ROUNDS):
        patch = (vectors @ centers.T).argmax(axis=1)
        order = np.argsort(patch, kind="stable")
        found, starts = np.unique(patch[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        centers = centers.copy()
        centers[found], _ = normalize(sums)
    return centers


def _enter_patches(
    vectors: np.ndarray, centers: np.ndarray, max_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The patch of each vector, int64 [n], and whether it is near each: bool [n, k].

    Of two near-duplicates in different patches, at least one is at most half their
    distance from the border of these, whatever the centers are.
    """
    products = vectors @ centers.T
    patch = products.argmax(axis=1)
    double = centers.astype(np.float64)
    squares = np.einsum("kd,kd->k", double, double)
    between = squares[:, None] + squares - 2 * double @ double.T
    between = np.sqrt(np.maximum(between, 0)).astype(np.float32)
    half = np.float32(cosine_to_distance(max_similarity) / 2)
    own = products[np.arange(len(products)), patch]
    limit = half * between + np.float32(_SLACK)
    return patch, own[:, None] - products <= limit[patch]
