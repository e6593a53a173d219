import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipeline.config.selection import SeededClusters, SelectionConfig
from pipeline.selection.hashed_random import unit_hashes
from pipeline.selection.lot_decisions import open_lot
from pipeline.selection.retrieval import seeded_clusters
from pipeline.selection.search import (
    centroid_files,
    embeddings,
    kmeans,
    pool_sample,
)
from pipeline.selection.search.centroid_files import TrainingFiles
from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.kmeans import AddSums, Proposals, Sums
from tests.support.score_tables import Row, make_run, read_decisions, select

CENTERS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
FEW = SeededClusters(
    n_clusters=3,
    min_seeds=2,
    max_per_cluster=3,
    max_per_set=100,
    n_iterations=2,
    rng_seed=6,  # the first centroids are near three centers, in POOL
)


def near(center: int, rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(np.array(CENTERS[center]) + 0.1 * rng.standard_normal(3))


def rows_near(*centers: int, rng_seed: int = 0, name: str = "") -> list[Row]:
    """One row for each number of a center."""
    rng = np.random.default_rng(rng_seed)
    return [
        Row(image=f"{name}{i}", key=str(center), embedding=near(center, rng))
        for i, center in enumerate(centers)
    ]


# Two flowers near the first center and two near the second; two trees near the second
# and one near the third.
SEEDS = {
    "flowers/1": rows_near(0, 0, 1, 1, rng_seed=1),
    "trees/1": rows_near(1, 1, 2, rng_seed=2),
}
POOL = {
    "web/1": rows_near(*[0, 1, 2] * 4, rng_seed=3, name="a"),
    "web/2": rows_near(*[2, 1, 0] * 4, rng_seed=4, name="b"),
}


def make(tmp_path, config=FEW, shards=POOL, **options):
    selection = SelectionConfig(retrieval=config)
    return make_run(str(tmp_path), selection, shards, seeds=SEEDS, **options)


def stored_bytes(folder: str) -> dict[str, bytes]:
    paths = sorted(pathlib.Path(folder).iterdir())
    return {path.name: path.read_bytes() for path in paths}


# K-means


def unit_vectors(rng: np.random.Generator, n: int, dim: int = 6) -> np.ndarray:
    return normalize(rng.standard_normal((n, dim)))[0]


def test_sums_are_exact_in_any_order():
    rng = np.random.default_rng(0)
    vectors, cluster = unit_vectors(rng, 60), rng.integers(5, size=60)
    expected = kmeans.sum_by_cluster(cluster, vectors)
    combine = AddSums()
    for _ in range(3):
        accumulators = [combine.create_accumulator() for _ in range(3)]
        for i in rng.permutation(60):
            sums = kmeans.sum_by_cluster(cluster[[i]], vectors[[i]])
            accumulators[i % 3] = combine.add_input(accumulators[i % 3], sums)
        found = combine.extract_output(combine.merge_accumulators(accumulators))
        np.testing.assert_array_equal(found.cluster, expected.cluster)
        np.testing.assert_array_equal(found.count, np.bincount(cluster))
        np.testing.assert_array_equal(found.total, expected.total)
    plain = [vectors[cluster == c].sum(axis=0) for c in range(5)]
    np.testing.assert_allclose(expected.total / 2**24, plain, atol=1e-5)
    nothing = kmeans.sum_by_cluster(np.empty(0, np.int64), np.empty((0, 0), np.float32))
    np.testing.assert_array_equal(
        kmeans.add_sums([nothing, expected, nothing]).total, expected.total
    )
    assert not len(kmeans.add_sums([nothing, nothing]).cluster)


def test_a_centroid_moves_to_the_direction_of_its_mean():
    centroids = np.eye(2, dtype=np.float32)
    vectors = normalize(np.array([[1, 0], [1, 2], [0, 1]]))[0]
    sums = kmeans.sum_by_cluster(np.array([0, 0, 1]), vectors)
    mean = vectors[0] + vectors[1]
    expected = np.stack([mean / np.linalg.norm(mean), [0, 1]])
    np.testing.assert_allclose(
        kmeans.new_centroids(centroids, sums), expected, atol=1e-6
    )


def test_an_empty_cluster_takes_half_of_the_largest():
    centroids = np.eye(4, dtype=np.float32)
    axes = np.eye(4, dtype=np.int64) * 2**24
    sums = Sums(
        np.array([1, 3]), np.array([5, 9]), np.stack([5 * axes[1], 9 * axes[3]])
    )
    found = kmeans.new_centroids(centroids, sums)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # The first empty one splits 9 into 4 and 5, the other halves the first 5.
    assert found.argmax(axis=1).tolist() == [3, 1, 1, 3]
    np.testing.assert_array_equal(centroids, np.eye(4))


def test_the_halves_of_a_cluster_are_not_equal():
    vectors = np.array([[0.6, 0.8]] * 2, np.float32)
    halves = kmeans.new_centroids(
        vectors, kmeans.sum_by_cluster(np.zeros(2, np.int64), vectors)
    )
    assert not np.array_equal(*halves)
    np.testing.assert_allclose(halves, vectors, atol=2e-3)


def test_no_cluster_of_one_image_is_split():
    centroids = np.eye(2, dtype=np.float32)
    sums = Sums(np.array([0]), np.array([1]), np.array([[2**24, 0]]))
    np.testing.assert_array_equal(kmeans.new_centroids(centroids, sums), centroids)


def test_first_centroids_are_those_of_the_smallest_hash_in_any_order():
    vectors = np.eye(4, dtype=np.float32)
    blocks = [
        Proposals(np.array([0.1, 0.4]), vectors[[0, 3]]),
        Proposals(np.array([0.2]), vectors[[1]]),
        Proposals(np.array([0.1, 0.3]), vectors[[0, 2]]),  # the first once more
        Proposals(np.empty(0), np.empty((0, 4), np.float32)),
    ]
    for order in (blocks, blocks[::-1]):
        np.testing.assert_array_equal(
            kmeans.first_proposals(order, 3).vector, vectors[:3]
        )


def test_centroids_are_those_of_plain_lloyd_iterations(tmp_path):
    run = make(tmp_path, dataclasses.replace(FEW, n_clusters=4))
    select(run)
    rows = [row for rows in POOL.values() for row in rows]
    ids = [d.sample_id for rows in read_decisions(run).values() for d in rows]
    vectors = np.array([row.embedding for row in rows], np.float16).astype(np.float32)
    vectors = normalize(vectors)[0].astype(np.float64)
    first = np.argsort(unit_hashes(ids, "centroid 6"))[:4]
    centroids = vectors[first]
    for _ in range(FEW.n_iterations):
        cluster = (vectors @ centroids.T).argmax(axis=1)
        sums = np.stack([vectors[cluster == c].sum(axis=0) for c in range(4)])
        centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    retrieval = run.config.selection.retrieval
    path = centroid_files.read_recorded_centroids(
        seeded_clusters.record_path(run, retrieval)
    )
    found = centroid_files.open_centroids(path).index.reconstruct_n(0, 4)
    np.testing.assert_allclose(found, centroids, atol=1e-5)


# Through Beam


@pytest.mark.parametrize("n_done", range(4))
def test_a_training_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch, n_done):
    config = dataclasses.replace(FEW, n_clusters=4)
    whole = make(tmp_path / "whole", config)
    select(whole)
    run = make(tmp_path / "killed", config)
    write = TrainingFiles.write

    def write_or_die(training, number, vectors):
        if number == n_done:
            raise RuntimeError("killed")
        return write(training, number, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFiles, "write", write_or_die)
        patch.setattr(TrainingFiles, "finish", lambda *_: write_or_die(None, n_done, 0))
        with pytest.raises(RuntimeError, match="killed"):
            select(run)
    written = []

    def write_and_note(training, number, vectors):
        written.append(number)
        return write(training, number, vectors)

    monkeypatch.setattr(TrainingFiles, "write", write_and_note)
    monkeypatch.setattr(pool_sample, "draw", None)  # the pool is not read again
    select(run)
    assert written == list(range(n_done, FEW.n_iterations + 1))
    for name in ("clusters", "decisions"):
        killed, expected = (
            {
                path.relative_to(folder): path.read_bytes()
                for path in folder.rglob("*.*")
                if path.is_file()
            }
            for folder in (tmp_path / "killed" / name, tmp_path / "whole" / name)
        )
        assert killed == expected


def test_a_sample_is_the_same_in_blocks_of_any_size(tmp_path, monkeypatch):
    run = make(tmp_path / "one")
    select(run)
    monkeypatch.setattr(pool_sample, "ROWS_PER_BLOCK", 2)
    monkeypatch.setattr(embeddings, "ROWS_PER_SEARCH", 3)
    monkeypatch.setattr(kmeans, "_CLUSTERS_PER_SUM", 2)
    blocks = make(tmp_path / "blocks")
    opened = open_lot(blocks.lots[0], blocks)
    assert len([*pool_sample.draw(opened, blocks, FEW, n_pool=24)]) == 4
    select(blocks)
    one, other = (stored_bytes(tmp_path / n / "clusters") for n in ("one", "blocks"))
    assert one == other


def test_a_block_of_the_sample_is_read_as_it_was_written(tmp_path):
    block = pool_sample.Block(
        np.array([0.25, np.nan]), np.array([False, True]), np.eye(2, dtype=np.float16)
    )
    names = [pool_sample.write(block, str(tmp_path)) for _ in range(2)]
    assert names == [f"sample-{block.digest}"] * 2
    found = pool_sample.read(str(tmp_path), names[0])
    assert found.digest == block.digest
    assert found.embedding.dtype == np.float16


def test_images_of_clusters_with_enough_seeds_are_drawn_by_smallest_hash(tmp_path):
    run = make(tmp_path)
    select(run)
    pairs = [
        (row, decision)
        for uri, decisions in read_decisions(run).items()
        for row, decision in zip(POOL[uri], decisions, strict=True)
    ]
    center_to_seeds = {"0": ("flowers",), "1": ("flowers", "trees")}
    for center, seeds in center_to_seeds.items():
        mine = [decision for row, decision in pairs if row.key == center]
        hashes = unit_hashes([d.sample_id for d in mine], "cluster 6")
        drawn = [mine[i] for i in np.argsort(hashes)]
        assert [d.seeds for d in drawn] == [seeds] * 3 + [()] * 5
        assert {d.outcome for d in drawn[:3]} == {"kept"}
        assert {(d.outcome, d.detail) for d in drawn[3:]} == {
            ("far_from_seeds", "not drawn from its cluster")
        }
    (reason,) = {
        (d.outcome, d.value, d.threshold, d.detail.rstrip("0123456789"))
        for row, d in pairs
        if row.key == "2"
    }
    assert reason == ("far_from_seeds", 1.0, 2.0, "seeds in cluster ")


def test_no_set_gets_more_than_its_cap(tmp_path):
    run = make(tmp_path, dataclasses.replace(FEW, max_per_set=4))
    select(run)
    kept = [d.seeds for rows in read_decisions(run).values() for d in rows]
    n_of_set = {name: sum(name in s for s in kept) for name in ("flowers", "trees")}
    assert n_of_set == {"flowers": 4, "trees": 3}


def test_images_without_an_embedding_and_whole_sources_are_not_drawn(tmp_path):
    lost = Row(embedding=(np.nan, 0, 0))
    shards = {**POOL, "web/3": [lost, Row(error="x", embedding=(0,) * 3)]}
    shards["city/1"] = rows_near(0, 2, rng_seed=5, name="c")
    run = make(tmp_path, shards=shards, keep_all=["city"])
    select(run)
    decisions = read_decisions(run)
    assert [(d.outcome, d.detail) for d in decisions["web/3"]] == [
        ("far_from_seeds", "no embedding"),
        ("unreadable", "x"),
    ]
    assert [(d.outcome, d.seeds) for d in decisions["city/1"]] == [("kept", ())] * 2


def test_a_pool_of_which_nothing_is_left_has_no_clusters(tmp_path):
    rows = [Row(error="x", embedding=(0,) * 3)] * 3
    run = make(tmp_path, shards={"web/1": rows})
    assert select(run)["unreadable"] == 3


@pytest.mark.parametrize("n_clusters", [1, 2])
def test_a_pool_has_as_many_centroids_as_are_asked_for_whatever_the_seed(
    tmp_path, n_clusters
):
    rows = rows_near(*[0, 1, 2] * 60)
    config = dataclasses.replace(FEW, n_clusters=n_clusters)
    run = make(tmp_path, config, shards={"web/1": rows})
    opened = open_lot(run.lots[0], run)
    for seed in range(200):
        seeded = dataclasses.replace(config, rng_seed=seed)
        sample = pool_sample.draw(opened, run, seeded, n_pool=len(rows))
        proposals = [kmeans.proposals_of(block) for block in sample]
        found = kmeans.first_proposals(proposals, n_clusters)
        assert len(found.hash) == n_clusters


def test_centroids_are_made_once_for_all_caps_and_checked(tmp_path):
    run = make(tmp_path)
    select(run)
    folder = tmp_path / "clusters"
    before = stored_bytes(folder)
    account = json.loads(*[d for name, d in before.items() if name.endswith(".json")])
    other = make(tmp_path, dataclasses.replace(FEW, max_per_cluster=1, min_seeds=1))
    assert other.decisions_fingerprint != run.decisions_fingerprint
    select(other)
    assert stored_bytes(folder) == before
    reseeded = make(tmp_path, dataclasses.replace(FEW, rng_seed=1))
    select(reseeded)
    assert stored_bytes(folder) != before

    (folder / account["file"]).write_bytes(b"broken")
    third = make(tmp_path, dataclasses.replace(FEW, max_per_cluster=2))
    with pytest.raises(ValueError, match=f"expected {account['blake2b']}"):
        select(third)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0: expected at least 1"),
        ({"min_seeds": 0}, "min_seeds=0: expected at least 1"),
        ({"rng_seed": -1}, "rng_seed=-1: expected at least 0"),
        ({"max_per_set": 2}, "max_per_cluster=3: expected at most max_per_set=2"),
    ],
)
def test_contradictory_settings_of_clusters_are_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FEW, **change)


def test_more_clusters_than_images_are_an_error_before_any_work(tmp_path):
    run = make(tmp_path, dataclasses.replace(FEW, n_clusters=25))
    message = "n_clusters=25: expected at most the 24 of the pool"
    with pytest.raises(ValueError, match=message):
        select(run)
    assert not (tmp_path / "indexes").exists()
