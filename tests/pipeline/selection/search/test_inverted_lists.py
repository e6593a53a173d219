import json
import pathlib
import tempfile

import faiss
import numpy as np
import pytest

from pipeline.config.selection import NearestToSeeds, NearSeeds, SelectionConfig
from pipeline.selection.search import (
    embeddings,
    index_builder,
    inverted_lists,
    reference_sets,
)
from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.reference_sets import ReferenceSet
from tests.support.score_tables import Row, make_run, outcomes

# Angles of 100 images of a set, all different in float16, and of the pool.
ANGLES = np.linspace(0, 1.5, 100)
SET = {
    "birds/1": [Row(key=f"{a:.2f}", embedding=(np.cos(a), np.sin(a))) for a in ANGLES]
}
POOL = {"web/1": [Row(embedding=(np.cos(a), np.sin(a))) for a in (-1, 0.1, 0.8, 3)]}


def vectors(n: int, dim: int = 16, rng_seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(rng_seed)
    return normalize(rng.standard_normal((n, dim)))[0]


def build(
    images: np.ndarray, queries: np.ndarray
) -> tuple[faiss.Index, inverted_lists.Recall]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lists.faiss"
        recall = inverted_lists.write(images, queries, path)
        return faiss.read_index(path), recall


@pytest.mark.parametrize("n", [5, 500, 4000])
def test_the_file_is_what_faiss_writes_when_it_has_all_vectors(n):
    images = vectors(n, dim=8)
    index, recall = build(images, images[:5])
    whole = faiss.IndexIVFFlat(
        index.quantizer, 8, recall.n_lists, faiss.METRIC_INNER_PRODUCT
    )
    whole.add(images)
    whole.make_direct_map()
    whole.nprobe = index.nprobe
    one, two = (faiss.serialize_index(i).tobytes() for i in (whole, index))
    assert one == two


def test_a_file_with_few_lists_in_use_is_what_faiss_writes(tmp_path):
    images = vectors(400, dim=4)
    quantizer = faiss.IndexFlatIP(4)
    quantizer.add(vectors(40, dim=4, rng_seed=2))
    one, other = (
        faiss.IndexIVFFlat(quantizer, 4, 40, faiss.METRIC_INNER_PRODUCT)
        for _ in range(2)
    )
    few = images[quantizer.assign(images, 1).ravel() < 5]
    one.make_direct_map()
    inverted_lists._write_lists(one, few, str(tmp_path / "lists"))
    other.add(few)
    other.make_direct_map()
    written = (tmp_path / "lists").read_bytes()
    assert written == faiss.serialize_index(other).tobytes()


def test_training_takes_a_sample_of_a_large_set(monkeypatch):
    images, queries = vectors(4000), vectors(300, rng_seed=1)
    monkeypatch.setattr(inverted_lists, "_MAX_TRAINING", 10)
    monkeypatch.setattr(inverted_lists, "_MIN_PER_LIST", 30)
    monkeypatch.setattr(inverted_lists, "_ROWS_PER_BLOCK", 700)
    index, recall = build(images, queries)
    assert index.ntotal == 4000
    assert recall.recall >= 0.99
    found, place = ReferenceSet("s", index, np.arange(4000).astype(str)).nearest(images)
    assert (place == np.arange(4000)).mean() > 0.98
    np.testing.assert_allclose(found, 1, atol=1e-2)


def test_enough_lists_are_searched_for_the_recall():
    images, queries = vectors(4000), vectors(300, rng_seed=1)
    index, recall = build(images, queries)
    exact, _ = faiss.knn(queries, images, 1, metric=faiss.METRIC_INNER_PRODUCT)
    found, _ = index.search(queries, 1)
    assert recall.recall == pytest.approx((found >= exact - 1e-5).mean())
    assert recall.recall >= 0.99
    assert 1 < recall.n_lists_searched < recall.n_lists == 102
    assert (recall.n_vectors, recall.n_sampled) == (4000, 300)


def test_two_builds_have_the_same_bytes():
    images, queries = vectors(500), vectors(50, rng_seed=1)
    one, two = (
        faiss.serialize_index(build(images, queries)[0]).tobytes() for _ in range(2)
    )
    assert one == two


def test_a_set_of_few_images_has_one_list():
    images = vectors(5)
    index, recall = build(images, images)
    assert (recall.n_lists, recall.n_lists_searched, recall.recall) == (1, 1, 1)
    found = ReferenceSet("birds", index, np.arange(5).astype(str)).nearest(images)
    assert found[1].tolist() == list(range(5))


def test_lists_with_fewer_images_than_candidates_give_those_they_have():
    images = vectors(1000, dim=4)
    index, _ = build(images, images[:10])
    index.nprobe = 1
    few = faiss.IndexIVFFlat(
        index.quantizer, 4, index.nlist, faiss.METRIC_INNER_PRODUCT
    )
    few.add(images[:30])
    few.make_direct_map()
    references = ReferenceSet("birds", few, np.arange(30).astype(str))
    similarity, image = references.nearest(images[:200])
    np.testing.assert_array_equal(image[:30], range(30))
    cosines = np.einsum("nd,nd->n", images[:200], images[image])
    np.testing.assert_allclose(similarity, cosines, atol=1e-6)


@pytest.mark.parametrize("retrieval", [NearSeeds(0.99), NearestToSeeds(1)])
def test_sets_beyond_the_size_are_searched_by_lists_where_they_are_searched(
    tmp_path, retrieval
):
    config = SelectionConfig(
        max_evaluation_similarity=0.9999, max_exact_set=99, retrieval=retrieval
    )
    sets = {"evaluation": {"apes/1": [Row(embedding=(-1, 0))]}, "seeds": SET}
    run = make_run(str(tmp_path), config, POOL, **sets)
    expected = ["far_from_seeds", "kept", "kept", "far_from_seeds"]
    assert outcomes(run)["web/1"] == expected
    reports = [*pathlib.Path(run.root, "indexes").glob("*.recall.json")]
    assert len(reports) == (retrieval == NearSeeds(0.99))
    for report in reports:
        assert report.name.startswith("birds-")
        assert json.loads(report.read_text())["recall"] == 1


@pytest.mark.parametrize("max_exact", [None, 10])
def test_a_set_is_the_same_in_blocks_of_any_size(tmp_path, monkeypatch, max_exact):
    repeated = [
        Row(key=f"{i % 7}", embedding=SET["birds/1"][i].embedding) for i in (3, 9)
    ]
    shards = {
        "birds/1": [*SET["birds/1"][50:], Row(key="lost", embedding=(np.nan, 1))],
        "birds/2": [*repeated, *SET["birds/1"][:50]],
    }
    written = []
    for rows_per_block in (4096, 7):
        monkeypatch.setattr(embeddings, "ROWS_PER_SEARCH", rows_per_block)
        root = str(tmp_path / str(rows_per_block))
        run = make_run(root, SelectionConfig(), POOL, seeds=shards)
        index_builder.build("seed_sets", run, run.seed_lots, max_exact=max_exact)
        paths = pathlib.Path(root, "indexes").iterdir()
        written.append({path.name: path.read_bytes() for path in paths})
    assert written[0] == written[1]
    (opened,) = map(
        ReferenceSet.open,
        index_builder.build("seed_sets", run, run.seed_lots, max_exact=max_exact),
    )
    assert len(opened.keys) == opened.index.ntotal == 100
    assert opened.keys.tolist() == sorted(opened.keys)


def test_a_set_of_that_size_is_exact(tmp_path):
    config = SelectionConfig(max_exact_set=100, retrieval=NearSeeds(0.99))
    run = make_run(str(tmp_path), config, POOL, seeds=SET)
    built = index_builder.build("seed_sets", run, run.seed_lots, max_exact=100)
    index = reference_sets.open_index(built[0].index_path)
    assert isinstance(index, faiss.IndexFlat)
    assert not [*pathlib.Path(run.root, "indexes").glob("*.recall.json")]
