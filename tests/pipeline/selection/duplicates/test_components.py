"""Tests of links within a cell, and of what follows from whole components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.duplicates import components, patches
from pipeline.selection.duplicates.component_roots import lookup
from pipeline.selection.duplicates.forests import find_roots
from pipeline.selection.duplicates.members import LINKED, image_numbers, root_names
from tests.support.near_copies import brute_force, first_images, members, near_copies

RNG = np.random.default_rng(0)
LOOKALIKES = near_copies(300, 8, 0.02, RNG, n_groups=1)
LOTS = ["u", "v", "w"]
PAIR = [("u", row, row + 1, 0, 0.9) for row in range(2)]
TRIPLE = [("v", row, row + 5, 0, 0.9) for row in range(3)]
TWINS = np.repeat(near_copies(40, 6, 0.3, RNG), 5, axis=0)


def same_components(embeddings: np.ndarray, bound: float) -> int:
    """Compares with all pairs at once; returns the number of linked images."""
    root, similarity = components.compare(embeddings, bound)
    expected_root, expected = brute_force(embeddings, bound)
    is_linked = expected > bound
    np.testing.assert_array_equal(root, expected_root)
    np.testing.assert_array_equal(similarity > bound, is_linked)
    np.testing.assert_array_equal(similarity[is_linked], expected[is_linked])
    return int(is_linked.sum())


@pytest.mark.parametrize("per_block", [1, 3000, 10**6])
@pytest.mark.parametrize("patch_size", [5, 10**6])
@pytest.mark.parametrize("n_close", [0, 8])  # more are compared at once
@pytest.mark.parametrize(
    "embeddings",
    [near_copies(120, 6, 0.3, RNG), LOOKALIKES, TWINS, np.eye(4, 5), np.eye(1, 3)],
    ids=["groups", "look-alikes", "twins", "none", "one"],
)
def test_links_are_those_of_brute_force(
    embeddings, n_close, patch_size, per_block, monkeypatch
):
    monkeypatch.setattr(patches, "_PRODUCTS_PER_BLOCK", per_block)
    monkeypatch.setattr(patches, "_PATCH_SIZE", patch_size)
    monkeypatch.setattr(components, "_MANY", n_close)
    for bound in (0.8, 0.99, 1.0):
        same_components(embeddings.astype(np.float16), bound)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), max_size=30),
    st.sampled_from([0.5, 0.70710678, 0.8, 0.9]),
)
def test_links_are_those_of_brute_force_at_the_bound_itself(rows, bound):
    rows = [row for row in rows if any(row)] + [[1, 0, 0], [1, 1, 0], [3, 4, 0]]
    same_components(np.array(rows, np.float16), bound)


def test_the_bound_itself_is_no_link():
    embeddings = np.array([[1, 0], [0.6, 0.8]])
    similarity = float(components.compare(embeddings, 0.5)[1][0])
    assert same_components(embeddings, similarity) == 0
    assert same_components(embeddings, np.nextafter(similarity, 0)) == 2


def test_a_group_of_lookalikes_takes_no_more_memory_than_its_products():
    links = components._Links(LOOKALIKES.astype(np.float32), 0.9)
    every = np.arange(len(LOOKALIKES))
    for row in every:
        links.add_block(every[row : row + 1], every[row:])
    assert not links.root.any()
    n_pairs = sum(len(first) for first, _, _ in links._close)
    assert n_pairs < len(LOOKALIKES) ** 2 / 4


def test_a_cell_tells_each_linked_image_once_in_whatever_order_its_blocks_come():
    near, far = np.array([[1, 0], [0.99, 0.1]]), np.array([[0, 1.0]])
    blocks = [members(1, near, 5), members(0, np.concatenate([far, near]), 1)]
    for order in (blocks, blocks[::-1]):
        found = components.find_links(order, by=1, max_similarity=0.98)
        expected = [image_numbers(lot, np.arange(3)) for lot in (0, 1)]
        assert found["image"].tolist() == [*expected[0][1:], *expected[1][:2]]
        assert found["sample_id"][:, 1].tolist() == [2, 3, 5, 6]
        assert first_images(found) == [1] * 4
        assert found["by"].tolist() == [1] * 4
        np.testing.assert_array_equal(found["similarity"], [1, 1, 1, 1])


def test_a_cell_without_near_duplicates_tells_nothing():
    assert not len(components.find_links([members(0, np.eye(3), 1)], 0, 0.5))


# Components


def links(*entries: tuple, by: int = 0) -> np.ndarray:
    """Entries of (lot, row, id, component, similarity); ids below zero are anchors."""
    lot, row, ids, component, similarity = map(np.array, zip(*entries, strict=True))
    found = np.empty(len(entries), LINKED)
    found["image"] = image_numbers(np.searchsorted(LOTS, lot), row)
    for one in set(component):
        mine = component == one
        found["root"][mine] = root_names(found["image"][mine].min(keepdims=True))
    found["sample_id"] = np.stack([np.zeros(len(ids)), np.abs(ids)], axis=1)
    found["is_anchor"] = ids < 0
    found["similarity"] = similarity
    found["by"] = by
    return found


def merge(*blocks: np.ndarray) -> np.ndarray:
    """Whole components, as `pool.FindComponents` makes them."""
    linked, pairs = components.merge_linked(blocks)
    nodes, roots = find_roots(pairs)
    linked["root"] = lookup(linked["root"], np.stack([nodes, roots], axis=1))
    return linked


def dropped(
    *blocks: np.ndarray, of_anchors: bool = False
) -> dict[tuple[str, int], tuple]:
    """(lot, row) to (id that stays, similarity, descriptor)."""
    found = components.find_duplicates(merge(*blocks), of_anchors=of_anchors)
    return {
        (LOTS[lot], row): (int(kept[1]), round(float(similarity), 3), by)
        for lot, found in found
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


def test_of_equal_ids_the_first_by_name_of_the_lot_and_row_stays():
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
    expected = {
        "images": 10,
        "components": 3,
        "size_to_components": {3: 2, 4: 1},
        "giants": [{"size": 4, "first": f"{20:032x}"}],
    }
    assert components.component_sizes(merge(block), alarm_size=4) == expected
    parts = [components.component_sizes(links(*half), 4) for half in (TRIPLE, PAIR)]
    assert components.add_sizes([expected, *parts]) == {
        "images": 15,
        "components": 5,
        "size_to_components": {2: 1, 3: 3, 4: 1},
        "giants": [{"size": 4, "first": f"{20:032x}"}],
    }


def test_the_largest_components_are_listed_first(monkeypatch):
    monkeypatch.setattr(components, "_MAX_LISTED", 2)
    parts = [components.component_sizes(links(*half), 2) for half in (PAIR, TRIPLE)]
    sizes = [large["size"] for large in components.add_sizes(parts * 2)["giants"]]
    assert sizes == [3, 3]


def test_no_links_make_no_components():
    sizes = components.add_sizes([components.component_sizes(merge(), 2)])
    assert (sizes["components"], sizes["images"]) == (0, 0)
    assert components.add_sizes([])["size_to_components"] == {}
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
