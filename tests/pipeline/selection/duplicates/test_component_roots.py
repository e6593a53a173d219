"""Tests of connected components: in memory, and merged in rounds by workers."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.duplicates import component_roots
from pipeline.selection.duplicates.component_roots import FindRoots, lookup
from pipeline.selection.duplicates.forests import find_roots, join
from pipeline.selection.duplicates.members import mix, root_names, split_by

RNG = np.random.default_rng(0)


def search(pairs: list[tuple[int, int]]) -> dict[int, int]:
    """Node to the smallest one that a walk along pairs reaches."""
    neighbors: dict[int, set[int]] = {}
    for a, b in pairs:
        neighbors.setdefault(a, set()).add(b)
        neighbors.setdefault(b, set()).add(a)
    found: dict[int, int] = {}
    for start in sorted(neighbors):
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found[node] = start
                waiting += neighbors[node]
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_roots_are_those_of_a_search(pairs):
    nodes, roots = find_roots(np.array(pairs, np.int64).reshape(-1, 2))
    assert dict(zip(nodes.tolist(), roots.tolist(), strict=True)) == search(pairs)


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_chain_is_one_component(order):
    chain = np.stack([np.arange(5000), np.arange(1, 5001)], axis=1)[::order]
    assert not find_roots(RNG.permutation(chain))[1].any()


def test_joining_again_changes_nothing():
    first, second = RNG.integers(50, size=(2, 30))
    root = join(np.arange(50), first, second)
    assert join(root, second, first).tolist() == root.tolist()


GRAPHS = {
    "none": np.empty((0, 2), np.int64),
    "pairs": np.arange(200).reshape(-1, 2),
    "chain": np.stack([np.arange(200), np.arange(1, 201)], axis=1),
    "star around the last": np.stack([np.arange(200), np.full(200, 200)], axis=1),
    "random": RNG.integers(300, size=(220, 2)),
    "large numbers": 2**62 - RNG.integers(300, size=(220, 2)),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("n_rounds", [0, 2])
def test_rounds_of_merging_find_the_roots_of_a_search(name, n_rounds, monkeypatch):
    monkeypatch.setattr(component_roots, "N_PARTITIONS", 7)
    pairs = RNG.permutation(GRAPHS[name].reshape(-1, 2))
    expected = search(pairs.tolist())

    def is_expected(found: list) -> None:
        entries = [(key, *pair) for key, block in found for pair in block.tolist()]
        assert {node: root for _, node, root in entries} == expected
        assert len(entries) == len(expected)
        for key, node, _ in entries:
            assert key == component_roots.partition(np.array([node]))[0]

    with beam.Pipeline(FnApiRunner()) as pipeline:
        blocks = pipeline | beam.Create(np.array_split(pairs, 5))
        assert_that(blocks | FindRoots(n_rounds), is_expected)


def test_an_image_without_a_root_is_its_own():
    images = np.array([5, 9, 7])
    assert lookup(images, np.empty((0, 2), np.int64)).tolist() == [5, 9, 7]
    assert lookup(images, np.array([[7, 1], [8, 2]])).tolist() == [5, 9, 1]


def test_numbers_are_spread_evenly_over_partitions():
    counts = np.bincount(mix(np.arange(10**5)) % np.uint64(256), minlength=256)
    assert counts.min() > 300
    assert counts.max() < 480
    assert len(np.unique(mix(np.arange(10**5)))) == 10**5


def test_entries_are_split_by_key_in_their_order():
    found = list(split_by(np.array([2, 0, 2]), np.array([5, 6, 7])))
    assert [(key, mine.tolist()) for key, mine in found] == [(0, [6]), (2, [5, 7])]
    assert list(split_by(np.empty(0, np.int64), np.empty(0))) == []


def n_left(pairs: np.ndarray) -> int:
    """Pairs that one round of merging leaves."""
    merged = [
        merged
        for _, mine in split_by(*spread(pairs))
        for _, merged in component_roots.merge_pairs(0, [mine])
    ]
    left = component_roots.CompareRoots().process((0, merged))
    return sum(len(found.value) for found in left if isinstance(found, TaggedOutput))


def spread(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keyed = list(component_roots.by_both(pairs))
    keys = np.repeat([key for key, _ in keyed], [len(mine) for _, mine in keyed])
    return keys, np.concatenate([mine for _, mine in keyed])


def test_a_round_shortens_a_chain_whose_images_are_in_order():
    names = root_names(np.arange(10_001))
    chain = np.stack([names[:-1], names[1:]], axis=1)
    assert n_left(chain) < 0.7 * len(chain)
