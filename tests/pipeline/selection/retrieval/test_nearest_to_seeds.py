import itertools

import faiss
import numpy as np
import pytest

from pipeline.config.selection import NearestToSeeds, SelectionConfig
from pipeline.records import Decision
from pipeline.selection.retrieval import keep_curated, nearest_to_seeds
from pipeline.selection.retrieval.top_k import Candidates, top_k
from pipeline.selection.search import exact_search, reference_sets
from pipeline.selection.search.embeddings import normalize
from tests.support.score_tables import (
    Row,
    Shards,
    make_run,
    read_decisions,
    sample_id,
    select,
)

SEEDS = {"flowers/1": [Row(embedding=(1, 0))], "trees/1": [Row(embedding=(0, 1))]}


def random_vectors(rng: np.random.Generator, n: int, dim: int = 24) -> np.ndarray:
    return normalize(rng.standard_normal((n, dim)))[0]


def clustered_vectors(rng: np.random.Generator, n: int, dim: int = 24) -> np.ndarray:
    """Few directions, each with many that differ by less than float32 can tell."""
    centers = random_vectors(rng, 5, dim)[rng.integers(5, size=n)]
    return normalize(centers + 1e-7 * rng.standard_normal((n, dim)))[0]


def equal_vectors(rng: np.random.Generator, n: int, dim: int = 24) -> np.ndarray:
    return random_vectors(rng, 5, dim)[rng.integers(5, size=n)]


def brute_force(
    seeds: np.ndarray, vectors: np.ndarray, sample_ids: np.ndarray, k: int
) -> list[list[int]]:
    """Positions of the k nearest of each seed; of equal ones by id."""
    found = []
    for seed in seeds.astype(np.float64):
        cosines = (vectors * seed).sum(axis=1).clip(-1, 1).astype(np.float32)
        order = np.lexsort((sample_ids, -cosines))
        found.append(order[:k].tolist())
    return found


def found_nearest(
    seeds: np.ndarray, vectors: np.ndarray, sample_ids: np.ndarray, k: int
) -> list[list[int]]:
    seed, place, similarity = exact_search.candidates(seeds, vectors, k)
    candidates = Candidates.of_lot(
        "lot",
        k,
        group=seed,
        rank=-similarity.astype(np.float64),
        sample_id=np.stack([np.zeros_like(sample_ids), sample_ids], axis=1)[place],
        row=place,
    )
    won = top_k([candidates])
    return [won.row[won.group == i].tolist() for i in range(len(seeds))]


@pytest.mark.parametrize("kind", [random_vectors, clustered_vectors, equal_vectors])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_nearest_images_are_those_of_brute_force_in_their_order(kind, k):
    rng = np.random.default_rng(k)
    seeds, vectors = random_vectors(rng, 30), kind(rng, 400)
    sample_ids = rng.permutation(400).astype(np.uint64)
    expected = brute_force(seeds, vectors, sample_ids, k)
    assert found_nearest(seeds, vectors, sample_ids, k) == expected
    parts = [found_nearest(seeds[[i]], vectors, sample_ids, k)[0] for i in range(5)]
    assert parts == expected[:5]


def test_a_pool_smaller_than_k_is_all_nearest():
    rng = np.random.default_rng(0)
    seeds, vectors = random_vectors(rng, 3), random_vectors(rng, 5)
    sample_ids = np.arange(5, dtype=np.uint64)
    for k in (4, 5, 6):
        expected = brute_force(seeds, vectors, sample_ids, k)
        assert found_nearest(seeds, vectors, sample_ids, k) == expected


def test_seeds_are_searched_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, seeds = random_vectors(rng, 50), random_vectors(rng, 7)
    index = faiss.IndexFlatIP(seeds.shape[1])
    index.add(seeds)
    monkeypatch.setattr(nearest_to_seeds, "SEEDS_PER_BLOCK", 3)
    references = reference_sets.ReferenceSet("flowers", index, np.empty(0))
    blocks = list(nearest_to_seeds.nearest_by_block(references, vectors, 2, {}))
    assert [first for first, *_ in blocks] == [0, 3, 6]
    for first, *found in blocks:
        expected = exact_search.candidates(seeds[first : first + 3], vectors, 2)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_with_a_floor_calls_give_no_more_than_may_be_among_the_nearest_of_all():
    rng = np.random.default_rng(2)
    vectors, seeds = random_vectors(rng, 2000), random_vectors(rng, 20)
    vectors[1500:] = vectors[:500]  # as near as those of other calls
    floor = np.full(len(seeds), -np.inf, np.float32)
    found: list[tuple[int, float, int]] = []
    n_found = []
    for start in [*range(0, 2000, 100), 1900, 0]:  # two of them again
        part = vectors[start : start + 100]
        triple = exact_search.candidates(seeds, part, 3, floor)
        n_found.append(len(triple[0]))
        found += [(s, -c, start + p) for s, p, c in zip(*triple, strict=True)]
    assert sum(n_found[10:]) < sum(n_found[:10])
    every = zip(*exact_search.candidates(seeds, vectors, 3), strict=True)
    expected = sorted((s, -c, p) for s, p, c in every)
    for seed in range(len(seeds)):
        best = sorted({row for row in found if row[0] == seed})[:3]
        assert best == [row for row in expected if row[0] == seed][:3]


def test_fewer_vectors_than_asked_for_raise_no_floor():
    seeds = random_vectors(np.random.default_rng(3), 2)
    floor = np.full(2, -np.inf, np.float32)
    seed, *_ = exact_search.candidates(seeds, seeds, 3, floor)
    assert seed.tolist() == [0, 0, 1, 1]
    assert (floor == -np.inf).all()


# Through Beam


def decided(
    tmp_path, shards: Shards, config: NearestToSeeds, *, seeds=SEEDS, keep_all=()
) -> dict[str, list[Decision]]:
    selection = SelectionConfig(retrieval=config)
    run = make_run(str(tmp_path), selection, shards, seeds=seeds, keep_all=keep_all)
    select(run)
    return read_decisions(run)


def kept_with_seeds(decisions: dict[str, list[Decision]]) -> dict[str, list]:
    return {
        uri: [d.seeds if d.outcome == "kept" else d.outcome for d in rows]
        for uri, rows in decisions.items()
    }


def test_the_nearest_of_each_seed_are_kept_with_all_sets_that_want_them(tmp_path):
    shards = {
        "web/1": [Row(embedding=(1, 0)), Row(embedding=(3, 1))],
        "web/2": [Row(embedding=(1, 3)), Row(embedding=(1, 1)), Row(error="x")],
    }
    found = decided(tmp_path, shards, NearestToSeeds(k=1, set_to_k={"trees": 2}))
    assert kept_with_seeds(found) == {
        "web/1": [("flowers",), "far_from_seeds"],
        "web/2": [("trees",), ("trees",), "unreadable"],
    }
    (_, far), _ = found.values()
    assert (far.value, far.threshold, far.seeds) == (None, None, ())
    assert far.detail == "not among the nearest of any seed"

    found = decided(tmp_path / "more", shards, NearestToSeeds(k=3))
    assert kept_with_seeds(found) == {
        "web/1": [("flowers",), ("flowers", "trees")],
        "web/2": [("trees",), ("flowers", "trees"), "unreadable"],
    }


def test_of_equally_near_images_the_smallest_ids_are_kept(tmp_path):
    names = [f"image {i}" for i in range(6)]
    rows = [Row(image=name, embedding=(1, 1)) for name in names]
    shards = {"web/1": rows[:2], "web/2": rows[2:5], "web/3": rows[5:]}
    found = decided(tmp_path, shards, NearestToSeeds(k=2))
    by_id = sorted(sample_id(row, row.image) for row in rows)
    kept = [
        decision.sample_id
        for decision in itertools.chain(*found.values())
        if decision.outcome == "kept"
    ]
    assert sorted(kept) == by_id[:2]


def test_an_image_without_an_embedding_is_near_no_seed(tmp_path):
    shards = {"web/1": [Row(embedding=(np.nan, 0)), Row(embedding=(-1, -1))]}
    lost, kept = decided(tmp_path, shards, NearestToSeeds(k=2))["web/1"]
    assert (lost.outcome, lost.detail) == ("far_from_seeds", "no embedding")
    assert kept.seeds == ("flowers", "trees")


def test_sources_to_keep_whole_take_no_place(tmp_path):
    shards = {"city/1": [Row(embedding=(1, 0))], "web/1": [Row(embedding=(1, 1))]}
    found = decided(tmp_path, shards, NearestToSeeds(k=1), keep_all=["city"])
    assert kept_with_seeds(found) == {"city/1": [()], "web/1": [("flowers", "trees")]}


def test_a_shard_without_droppable_pairs_is_decided_on(tmp_path):
    shards = {"web/1": [], "web/2": [Row(error="x")], "web/3": [Row()]}
    found = decided(tmp_path, shards, NearestToSeeds(k=1))
    assert kept_with_seeds(found) == {
        "web/1": [],
        "web/2": ["unreadable"],
        "web/3": [("flowers", "trees")],
    }


# Bad input


@pytest.mark.parametrize(
    ("k", "set_to_k", "message"),
    [
        (0, {}, "k=0: expected at least 1"),
        (1, {"trees": -1}, r"set_to_k\['trees'\]=-1: expected at least 1"),
    ],
)
def test_a_seed_that_wants_nothing_is_an_error(k, set_to_k, message):
    with pytest.raises(ValueError, match=message):
        NearestToSeeds(k, set_to_k)


def test_a_number_for_an_unknown_set_is_an_error(tmp_path):
    config = NearestToSeeds(set_to_k={"cars": 2})
    message = r"set_to_k\['cars'\]=2: expected one of flowers, trees"
    with pytest.raises(ValueError, match=message):
        decided(tmp_path, {"web/1": [Row()]}, config)


def test_more_neighbors_than_images_are_an_error_before_any_work(tmp_path):
    shards = {"web/1": [Row()] * 2, "web/2": [Row()], "city/1": [Row()] * 9}
    selection = SelectionConfig(retrieval=NearestToSeeds(1, {"trees": 4}))
    run = make_run(str(tmp_path), selection, shards, seeds=SEEDS, keep_all=["city"])
    with pytest.raises(ValueError, match="k=4: expected at most the 3 of the pool"):
        select(run)
    assert not (tmp_path / "indexes").exists()
    keep_curated.check(run)
