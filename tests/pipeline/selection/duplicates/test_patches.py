"""Tests of which vectors of a part are compared with one another."""

import itertools

import numpy as np
import pytest

from pipeline.selection.duplicates import patches
from tests.support.near_copies import near_copies, similar_pairs, unit_rows


def compared(
    vectors: np.ndarray, bound: float, is_visitor: np.ndarray | None = None
) -> tuple[set[tuple[int, int]], int]:
    """Pairs that are compared, and the number of products."""
    found, n_products = set(), 0
    for rows, columns in patches.blocks_to_compare(vectors, bound, is_visitor):
        np.testing.assert_array_equal(columns[: len(rows)], rows)
        n_products += len(rows) * len(columns)
        for place, row in enumerate(rows.tolist()):
            later = columns[place + 1 :].tolist()
            found |= {(min(row, other), max(row, other)) for other in later}
    return found, n_products


@pytest.mark.parametrize("bound", [0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("noise", [0.02, 0.4, 2.0])
@pytest.mark.parametrize("patch_size", [3, 20])
def test_all_near_duplicates_are_compared(patch_size, noise, bound, monkeypatch):
    monkeypatch.setattr(patches, "_PATCH_SIZE", patch_size)
    rng = np.random.default_rng(0)
    vectors = near_copies(240, 6, noise, rng, n_groups=20)[rng.permutation(240)]
    vectors[:5] = vectors[5:10]
    assert similar_pairs(vectors, bound) <= compared(vectors, bound)[0]


def test_vectors_apart_are_compared_with_few_others():
    rng = np.random.default_rng(0)
    vectors = near_copies(2000, 64, 0.4, rng, n_groups=40)[rng.permutation(2000)]
    pairs, n_products = compared(vectors, 0.9)
    assert similar_pairs(vectors, 0.9) <= pairs
    assert n_products < 2000**2 / 8


def test_vectors_that_no_border_tells_apart_are_all_compared_once():
    for n in (0, 1, 10, 1000):
        vectors = unit_rows(n, 16, np.random.default_rng(0))
        pairs, n_products = compared(vectors, 0.1)
        assert pairs == set(itertools.combinations(range(n), 2))
        assert n_products <= n * (n + patches._ROWS_PER_BLOCK) / 2


@pytest.mark.parametrize("patch_size", [3, 10**6])
def test_visitors_are_compared_with_others_and_not_with_one_another(
    patch_size, monkeypatch
):
    monkeypatch.setattr(patches, "_PATCH_SIZE", patch_size)
    rng = np.random.default_rng(0)
    vectors = near_copies(240, 6, 0.1, rng, n_groups=20)[rng.permutation(240)]
    is_visitor = rng.random(240) < 0.75
    near = {
        (i, j)
        for i, j in similar_pairs(vectors, 0.9)
        if not (is_visitor[i] and is_visitor[j])
    }
    pairs, n_products = compared(vectors, 0.9, is_visitor)
    assert near
    assert near <= pairs
    assert n_products < 240**2 / 3
