"""Vectors of which some are near, and the comparison of all pairs of them."""

import numpy as np

from pipeline.selection.duplicates.members import image_numbers, members_dtype
from pipeline.selection.search.embeddings import normalize


def unit_rows(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Random unit vectors, float32 [n, dim]."""
    vectors = rng.standard_normal((n, dim))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / length).astype(np.float32)


def near_copies(
    n: int, dim: int, noise: float, rng: np.random.Generator, n_groups: int = 0
) -> np.ndarray:
    """Lot vectors around each of some, of n / 4 unless told; nearer by less noise."""
    n_groups = n_groups or n // 4
    centers = np.repeat(unit_rows(n_groups, dim, rng), n // n_groups, axis=0)
    vectors = centers + noise * unit_rows(len(centers), dim, rng)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def similar_pairs(embeddings: np.ndarray, bound: float) -> set[tuple[int, int]]:
    """Pairs of more than that cosine, in double precision."""
    cosine = _cosines(embeddings)
    return {(i, j) for i, j in np.argwhere(cosine > bound).tolist() if i < j}


def brute_force(embeddings: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """The first image of each one's component, and its largest similarity to another.

    Similarities are those of double precision, rounded to single.
    """
    cosine = _cosines(embeddings)
    np.fill_diagonal(cosine, -1)
    linked = cosine > bound
    root = np.arange(len(embeddings))
    while True:
        near = np.where(linked, root, len(root)).min(axis=1, initial=len(root))
        if (near >= root).all():
            return root, cosine.max(axis=1)
        root = np.minimum(root, near)


def _cosines(embeddings: np.ndarray) -> np.ndarray:
    vectors = normalize(embeddings)[0].astype(np.float64)
    return np.einsum("id,jd->ij", vectors, vectors).clip(-1, 1).astype(np.float32)


def members(lot: int, embeddings: np.ndarray, first_id: int = 1) -> np.ndarray:
    """The images of one lot, with ids that count from one."""
    n = len(embeddings)
    found = np.zeros(n, members_dtype(embeddings.shape[1]))
    found["image"] = image_numbers(lot, np.arange(n))
    found["sample_id"][:, 1] = first_id + np.arange(n)
    found["embedding"] = embeddings
    return found


def first_images(linked: np.ndarray) -> list[int]:
    """The first image of the component of each one: LINKED [n]."""
    root_to_first: dict[int, int] = {}
    for root, image in zip(linked["root"], linked["image"], strict=True):
        root_to_first[root] = min(image, root_to_first.get(root, image))
    return [int(root_to_first[root]) for root in linked["root"]]
