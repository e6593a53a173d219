"""Tests of cells, of links within a cell, and of components put together from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.duplicates import components
from pipeline.selection.duplicates.components import Members, SimilarityEdges
from pipeline.selection.duplicates.kmeans_cells import border_distances, find_cells

RNG = np.random.default_rng(0)


def unit_rows(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    vectors = rng.standard_normal((n, dim))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / length).astype(np.float32)


def near_copies(n: int, dim: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Clusters of four vectors around each of n / 4."""
    vectors = np.repeat(unit_rows(n // 4, dim, rng), 4, axis=0)
    vectors = vectors + noise * unit_rows(len(vectors), dim, rng)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(vectors: np.ndarray, bound: float) -> set[tuple[int, int]]:
    """Pairs of more than that cosine, in double precision."""
    doubles = vectors.astype(np.float64)
    cosine = (doubles @ doubles.T).astype(np.float32)
    return {(i, j) for i, j in np.argwhere(cosine > bound).tolist() if i < j}


# Cells


def test_an_image_enters_its_own_cell_and_those_with_a_near_border():
    centroids = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    angles = np.radians([0, 40, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    distances = border_distances(vectors, centroids)
    expected = [[0, 0.7071, 1], [0, 0.0872, 0.7660], [0.7071, 0, 0.7071]]
    np.testing.assert_allclose(distances, expected, atol=1e-4)
    images, cells = find_cells(vectors, centroids, reach=0.2, max_per_image=3)
    assert list(zip(images, cells, strict=True)) == [(0, 0), (1, 0), (1, 1), (2, 1)]


def test_fewer_cells_an_image_are_those_with_the_nearest_border():
    vectors, centroids = unit_rows(50, 4, RNG), unit_rows(9, 4, RNG)
    images, cells = find_cells(vectors, centroids, reach=2, max_per_image=3)
    assert np.bincount(images).tolist() == [3] * 50
    nearest = np.argsort(border_distances(vectors, centroids), axis=1)[:, :3]
    for image in range(50):
        assert set(cells[images == image]) == set(nearest[image])


@pytest.mark.parametrize("bound", [0.6, 0.9, 0.99])
def test_near_duplicates_meet_in_some_cell(bound):
    noise = np.sqrt(1 - bound)
    vectors, centroids = near_copies(400, 8, noise, RNG), unit_rows(20, 8, RNG)
    images, cells = find_cells(
        vectors, centroids, components.cosine_to_distance(bound), 20
    )
    entered = np.zeros((400, 20), bool)
    entered[images, cells] = True
    pairs = brute_force(vectors, bound)
    assert len(pairs) > 50
    assert all((entered[i] & entered[j]).any() for i, j in pairs)


# SimilarityEdges


@pytest.mark.parametrize("per_block", [1, 3000, 10**6])
@pytest.mark.parametrize("vectors", [near_copies(120, 6, 0.3, RNG), np.eye(4, 5)])
def test_similar_pairs_are_those_of_brute_force(vectors, per_block, monkeypatch):
    monkeypatch.setattr(components, "_PRODUCTS_PER_BLOCK", per_block)
    vectors = vectors.astype(np.float32)
    pairs, similarity = components.similar_pairs(vectors, 0.9)
    assert set(map(tuple, pairs.tolist())) == brute_force(vectors, 0.9)
    expected = np.einsum("nd,nd->n", *vectors[pairs.T].astype(np.float64))
    np.testing.assert_array_equal(similarity, expected.astype(np.float32))


def members(name: str, embedding: np.ndarray, first_id: int) -> Members:
    n = len(embedding)
    ids = np.stack([np.zeros(n), first_id + np.arange(n)], axis=1).astype(np.uint64)
    is_anchor = np.zeros(n, bool)
    return Members(name, np.arange(n), ids, is_anchor, embedding.astype(np.float16))


def test_a_cell_tells_each_linked_image_once_in_whatever_order_its_blocks_come():
    near, far = np.array([[1, 0], [0.99, 0.1]]), np.array([[0, 1.0]])
    blocks = [members("b", near, 5), members("a", np.concatenate([far, near]), 1)]
    for order in (blocks, blocks[::-1]):
        (links,) = components.find_edges(order, by=1, max_similarity=0.98)
        assert links.unit_names == ("a", "b")
        assert links.unit.tolist() == [0, 0, 1, 1]
        assert links.row.tolist() == [1, 2, 0, 1]
        assert links.sample_id[:, 1].tolist() == [2, 3, 5, 6]
        assert len(set(links.component)) == 1
        assert links.by.tolist() == [1] * 4
        np.testing.assert_array_equal(links.similarity, [1, 1, 1, 1])


def test_a_cell_without_near_duplicates_tells_nothing():
    assert not list(components.find_edges([members("a", np.eye(3), 1)], 0, 0.5))


# Components


def links(*entries: tuple, by: int = 0) -> SimilarityEdges:
    """Entries of (unit, row, id, component, similarity); ids below zero are anchors."""
    unit, row, ids, component, similarity = map(np.array, zip(*entries, strict=True))
    names, position = np.unique(unit, return_inverse=True)
    words = np.stack([np.zeros(len(ids)), np.abs(ids)], axis=1).astype(np.uint64)
    return SimilarityEdges(
        tuple(names.tolist()),
        position,
        row,
        words,
        ids < 0,
        component,
        similarity.astype(np.float32),
        np.full(len(ids), by),
    )


def dropped(
    *blocks: SimilarityEdges, of_anchors: bool = False
) -> dict[tuple[str, int], tuple]:
    """(unit, row) to (id that stays, similarity, descriptor)."""
    together = components.merge_components(blocks)
    return {
        (unit, row): (int(kept[1]), round(float(similarity), 3), by)
        for unit, found in components.find_duplicates(together, of_anchors=of_anchors)
        for row, kept, similarity, by in zip(
            *(found.row.tolist(), found.kept_id),
            *(found.similarity, found.by.tolist()),
            strict=True,
        )
    }


def test_the_smallest_id_of_a_component_stays_across_cells_and_descriptors():
    blocks = [
        links(("u", 0, 9, 0, 0.9), ("u", 1, 5, 0, 0.9)),
        links(("u", 1, 5, 0, 0.95), ("v", 0, 3, 0, 0.95), by=1),
        links(("v", 7, 1, 0, 0.8), ("w", 7, 2, 0, 0.8)),
    ]
    expected = {
        ("u", 0): (3, 0.9, 0),
        ("u", 1): (3, 0.9, 0),
        ("w", 7): (1, 0.8, 0),
    }
    assert dropped(*blocks) == expected
    assert dropped(*blocks[::-1]) == expected


def test_of_equal_ids_the_first_by_name_of_the_unit_and_row_stays():
    block = links(("v", 0, 4, 0, 1), ("u", 2, 4, 0, 1), ("u", 1, 4, 0, 1))
    assert set(dropped(block)) == {("u", 2), ("v", 0)}


def test_the_first_descriptor_and_the_largest_similarity_are_kept():
    blocks = [
        links(("u", 0, 1, 0, 0.99), ("u", 1, 2, 0, 0.99), by=1),
        links(("u", 0, 1, 0, 0.7), ("u", 1, 2, 0, 0.7)),
        links(("u", 0, 1, 0, 0.8), ("u", 1, 2, 0, 0.8)),
    ]
    assert dropped(*blocks) == {("u", 1): (1, 0.8, 0)}


def test_what_is_linked_to_an_anchor_goes_and_other_components_stay():
    block = links(
        ("u", 0, -9, 0, 0.9),
        ("u", 1, 1, 0, 0.9),
        ("u", 2, -7, 0, 0.9),
        ("u", 3, 2, 1, 0.9),
        ("u", 4, 3, 1, 0.9),
    )
    assert dropped(block, of_anchors=True) == {("u", 1): (7, 0.9, 0)}


def test_the_account_counts_components_by_size_and_names_giants():
    block = links(
        *[("u", row, row + 10, row // 3, 0.9) for row in range(6)],
        *[("v", row, row + 20, 2, 0.9) for row in range(4)],
    )
    assert components.component_sizes(
        components.merge_components([block]), alarm_size=4
    ) == {
        "images": 10,
        "components": 3,
        "size_to_components": {"3": 2, "4": 1},
        "alarm_size": 4,
        "giants": [{"size": 4, "first": f"{20:032x}"}],
    }


def test_no_links_make_no_components():
    none = components.merge_components([])
    assert components.component_sizes(none, 2)["components"] == 0
    assert not dropped()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_components_are_those_of_a_search_over_the_pairs(pairs):
    blocks = [links(("u", a, a, 0, 0.9), ("u", b, b, 0, 0.9)) for a, b in pairs]
    smallest = list(range(12))
    for _ in range(12):
        for a, b in pairs:
            smallest[a] = smallest[b] = min(smallest[a], smallest[b])
    found = {row: kept for (_, row), (kept, *_) in dropped(*blocks).items()}
    assert found == {i: s for i, s in enumerate(smallest) if s != i}
