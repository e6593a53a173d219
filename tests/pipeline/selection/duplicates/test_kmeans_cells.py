"""Tests of cells, of their split into smaller ones, and of who meets in their parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.duplicates import ENCODER, Cells, Resemblance
from pipeline.selection.duplicates import cell_splits, components
from pipeline.selection.duplicates.cell_entries import (
    Comparison,
    Splits,
    enter_cells,
    find_entries,
)
from pipeline.selection.duplicates.cell_splits import (
    CellSplit,
    SplitPlan,
    cosine_to_distance,
    split_cell,
    wanted_size,
)
from pipeline.selection.duplicates.component_roots import lookup
from pipeline.selection.duplicates.forests import find_roots
from pipeline.selection.duplicates.kmeans_cells import (
    border_distances,
    find_cells,
    to_grid,
)
from pipeline.selection.duplicates.members import LINKED
from tests.support.near_copies import (
    brute_force,
    first_images,
    members,
    near_copies,
    similar_pairs,
    unit_rows,
)

RNG = np.random.default_rng(0)
NONE = Splits({})


def entered(vectors: np.ndarray, centroids: np.ndarray, reach: float, n: int):
    """Whether each image enters each cell."""
    cells, distances = find_cells(to_grid(vectors), to_grid(centroids), reach, n)
    found = np.zeros((len(vectors), len(centroids)), bool)
    image, rank = np.nonzero(np.isfinite(distances))
    found[image, cells[image, rank]] = True
    return found


def test_an_image_enters_its_own_cell_and_those_with_a_near_border():
    centroids = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    angles = np.radians([0, 40, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    distances = border_distances(to_grid(vectors), to_grid(centroids)) / 4000
    expected = [[0, 0.7071, 1], [0, 0.0872, 0.7660], [0.7071, 0, 0.7071]]
    np.testing.assert_allclose(distances, expected, atol=3e-4)
    found = np.argwhere(entered(vectors, centroids, 0.2, 3)).tolist()
    assert found == [[0, 0], [1, 0], [1, 1], [2, 1]]


def test_fewer_cells_an_image_are_those_with_the_nearest_border():
    vectors, centroids = unit_rows(50, 4, RNG), unit_rows(9, 4, RNG)
    found = entered(vectors, centroids, reach=2, n=3)
    assert found.sum(axis=1).tolist() == [3] * 50
    distances = border_distances(to_grid(vectors), to_grid(centroids))
    nearest = np.argsort(distances, axis=1)[:, :3]
    assert np.take_along_axis(found, nearest, axis=1).all()


def test_no_image_enters_more_cells_than_it_may_among_equal_ones():
    centroids = np.repeat(unit_rows(1, 4, RNG), 9, axis=0)
    found = entered(unit_rows(5, 4, RNG), centroids, reach=1, n=2)
    assert found.tolist() == [[True] * 2 + [False] * 7] * 5


@pytest.mark.parametrize("bound", [0.6, 0.9, 0.99])
def test_near_duplicates_meet_in_some_cell(bound):
    noise = np.sqrt(1 - bound)
    vectors, centroids = near_copies(400, 8, noise, RNG), unit_rows(20, 8, RNG)
    found = entered(vectors, centroids, cosine_to_distance(bound), 20)
    pairs = similar_pairs(vectors, bound)
    assert len(pairs) > 50
    assert all((found[i] & found[j]).any() for i, j in pairs)


def test_cells_depend_neither_on_blocks_nor_on_the_order_of_sums():
    grid, centroids = to_grid(unit_rows(300, 700, RNG)), to_grid(unit_rows(9, 700, RNG))
    whole = find_cells(grid, centroids, 1.0, 4)
    shuffled = RNG.permutation(700)
    other = find_cells(grid[:, shuffled], centroids[:, shuffled], 1.0, 4)
    ones = [find_cells(grid[i : i + 1], centroids, 1.0, 4) for i in range(300)]
    for mine, same, parts in zip(whole, other, zip(*ones, strict=True), strict=True):
        np.testing.assert_array_equal(mine, same)
        np.testing.assert_array_equal(mine, np.concatenate(parts))


# Splits


def compare_by(bound: float, cells: Cells) -> Comparison:
    return Comparison(None, cells, Resemblance(ENCODER, bound), of_anchors=False)


def compare_in_parts(
    images: np.ndarray, bound: float, n_wanted: int, share: float, max_per_image: int
) -> tuple[np.ndarray, dict[int, int]]:
    """Linked images with their last root, and the number of images in each part."""
    parts = enter_parts(images, bound, n_wanted, share, max_per_image)
    return link_in(parts, bound), {key: len(part) for key, part in parts.items()}


def enter_parts(
    images: np.ndarray, bound: float, n_wanted: int, share: float, max_per_image: int
) -> dict[int, np.ndarray]:
    """The images of each part."""
    cells = Cells(n_clusters=3, max_per_image=max_per_image, n_iterations=3)
    comparison = compare_by(bound, cells)
    plan = SplitPlan(cells, bound, 1 / share, n_wanted)
    dim = images["embedding"].shape[1]
    centroids = to_grid(unit_rows(3, dim, np.random.default_rng(0)))
    drawn = images[np.random.default_rng(1).random(len(images)) < share]
    samples = gather(
        [drawn], lambda block: enter_cells(block, centroids, NONE, comparison)
    )
    found = {key >> 40: split_cell(sample, plan) for key, sample in samples.items()}
    splits = Splits({cell: split for cell, split in found.items() if split is not None})
    blocks = np.array_split(images, 3)
    return gather(
        blocks, lambda block: enter_cells(block, centroids, splits, comparison)
    )


def link_in(parts: dict[int, np.ndarray], bound: float) -> np.ndarray:
    """Linked images with their last root."""
    linked = [components.find_links([part], 0, bound) for part in parts.values()]
    merged, pairs = components.merge_linked(linked)
    roots = np.stack(find_roots(pairs), axis=1)
    merged["root"] = lookup(merged["root"], roots)
    return merged


def gather(blocks: list[np.ndarray], enter) -> dict[int, np.ndarray]:
    """The images of each part."""
    found: dict[int, list[np.ndarray]] = {}
    for block in blocks:
        for key, mine in enter(block):
            found.setdefault(key, []).append(mine)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def expect_brute_force(embeddings: np.ndarray, bound: float, merged: np.ndarray):
    root, similarity = brute_force(embeddings, bound)
    linked = np.flatnonzero(similarity > bound)
    assert merged["image"].tolist() == linked.tolist()
    assert first_images(merged) == root[linked].tolist()
    assert (merged["similarity"] > bound).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
    st.integers(5, 60),
    st.sampled_from([1, 0.3]),
    st.sampled_from([0.02, 0.1, 0.3]),
)
def test_split_cells_find_the_components_of_brute_force(
    rng_seed, bound, n_wanted, share, noise
):
    rng = np.random.default_rng(rng_seed)
    dim = int(rng.integers(3, 9))
    lookalikes = near_copies(200, dim, noise, rng, n_groups=1)
    vectors = np.concatenate([near_copies(200, dim, 0.3, rng), lookalikes])
    embeddings = rng.permutation(vectors).astype(np.float16)
    images = members(0, embeddings)
    merged, _ = compare_in_parts(images, bound, n_wanted, share, max_per_image=10**4)
    expect_brute_force(embeddings, bound, merged)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.8, 0.95, 0.99]),
    st.integers(2, 30),
    st.integers(1, 4),
)
def test_visitors_that_are_left_alone_would_change_no_component(
    rng_seed, bound, n_wanted, max_per_image
):
    rng = np.random.default_rng(rng_seed)
    dim = int(rng.integers(2, 9))
    lookalikes = near_copies(100, dim, 0.1, rng, n_groups=1)
    vectors = np.concatenate([near_copies(200, dim, 0.2, rng), lookalikes])
    images = members(0, rng.permutation(vectors))
    parts = enter_parts(images, bound, n_wanted, 1, max_per_image)
    few = link_in(parts, bound)
    for part in parts.values():
        part["is_visitor"] = False
    every = link_in(parts, bound)
    assert few["image"].tolist() == every["image"].tolist()
    assert first_images(few) == first_images(every)


def test_only_an_image_that_enters_all_near_cells_is_a_visitor_that_is_not_cut():
    centroids = to_grid(np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    angles = np.radians([0, 40, 90])
    images = members(0, np.stack([np.cos(angles), np.sin(angles)], 1))
    bound = 1 - 1.5**2 / 2  # a border at most 0.75 away is near
    found = {}
    for n_most in (2, 3):
        comparison = compare_by(bound, Cells(max_per_image=n_most))
        entries = find_entries(
            to_grid(images["embedding"].astype(np.float32)), centroids, NONE, comparison
        )
        found[n_most] = entries[:, [0, 1, 3, 4]].tolist()
    own, visitor, cut = [0, 0], [1, 0], 1
    assert found[3] == [
        [0, 0, *own], [0, 1, *visitor],
        [1, 0, *own], [1, 1, *visitor],
        [2, 1, *own], [2, 0, *visitor], [2, 2, *visitor],
    ]  # fmt: skip
    assert found[2] == [
        [0, 0, *own], [0, 1, *visitor],
        [1, 0, *own], [1, 1, *visitor],
        [2, 1, 0, cut], [2, 0, 1, cut],
    ]  # fmt: skip


def test_lookalikes_are_spread_over_parts_and_stay_one_component():
    rng = np.random.default_rng(0)
    lookalikes = near_copies(2000, 16, 0.1, rng, n_groups=1)
    vectors = np.concatenate([unit_rows(500, 16, rng), lookalikes])
    images = members(0, vectors)
    merged, sizes = compare_in_parts(images, 0.9, 40, 1, max_per_image=4)
    expect_brute_force(vectors.astype(np.float16), 0.9, merged)
    assert max(sizes.values()) < 2000 / 3
    assert sum(n * n for n in sizes.values()) < 2500**2


def test_a_cell_of_spread_images_is_split_until_its_parts_are_small():
    vectors = near_copies(4000, 6, 0.5, np.random.default_rng(0), n_groups=2)
    merged, sizes = compare_in_parts(members(0, vectors), 0.995, 40, 1, 4)
    expect_brute_force(vectors.astype(np.float16), 0.995, merged)
    assert max(sizes.values()) < 400


def test_a_small_cell_is_not_split():
    plan = SplitPlan(Cells(), 0.9, 4.0, 20)
    assert split_cell(members(0, unit_rows(10, 4, RNG)), plan) is None
    assert split_cell(members(0, unit_rows(11, 4, RNG)), plan) is not None


def test_a_split_depends_neither_on_the_order_of_its_sample_nor_on_a_copy_of_it():
    plan = SplitPlan(Cells(), 0.9, 4.0, 20)
    sample = members(0, near_copies(400, 8, 0.3, RNG, n_groups=4))
    first, second = (split_cell(RNG.permutation(sample), plan) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    assert CellSplit.from_bytes(first.to_bytes()).to_bytes() == first.to_bytes()


def test_equal_images_alone_fill_parts_of_one_cell():
    images = members(0, np.repeat(unit_rows(1, 8, RNG), 500, axis=0))
    merged, sizes = compare_in_parts(images, 0.9, 10, 1, max_per_image=4)
    assert first_images(merged) == [0] * 500
    assert max(sizes.values()) < 120


def test_the_image_of_a_group_enters_all_parts_wherever_it_lies():
    comparison = Comparison(
        None, Cells(max_per_image=1), Resemblance(ENCODER, 0.9), False
    )
    centroids = to_grid(np.eye(2, 4, dtype=np.float32))
    split = CellSplit(
        centroids=to_grid(np.eye(2, 4)).astype(np.int16),
        n_parts=np.array([1, 3]),
        image=np.array([cell_splits.NO_IMAGE, 5]),
        embedding=np.eye(2, 4).astype(np.float16),
    )
    images = members(0, np.repeat(np.eye(1, 4), 9, axis=0))
    found = gather(
        [images], lambda b: enter_cells(b, centroids, Splits({0: split}), comparison)
    )
    small = {key & (2**40 - 1): part["image"].tolist() for key, part in found.items()}
    second = 1 << 20
    expected = {0: list(range(9)), second: [5], second + 1: [5], second + 2: [5]}
    assert small == expected


def test_an_image_enters_as_few_small_cells_as_cells():
    comparison = Comparison(
        None, Cells(max_per_image=3), Resemblance(ENCODER, 0.5), False
    )
    rng = np.random.default_rng(0)
    sample = members(0, unit_rows(200, 8, rng))
    split = split_cell(sample, SplitPlan(comparison.cells, 0.5, 1, 10))
    centroids = to_grid(unit_rows(4, 8, rng))
    splits = Splits(dict.fromkeys(range(4), split))
    grid = to_grid(unit_rows(50, 8, rng))
    entries = find_entries(grid, centroids, splits, comparison)
    assert np.bincount(entries[:, 0]).tolist() == [3] * 50
    assert len(np.unique(entries, axis=0)) == len(entries)


def test_small_cells_grow_where_their_centroids_would_fill_a_worker():
    assert wanted_size(4 * 10**7, 256, 1024) == 1024
    assert wanted_size(4 * 10**9, 1024, 1024) == 15259


def test_links_are_small():
    assert LINKED.itemsize < 50
