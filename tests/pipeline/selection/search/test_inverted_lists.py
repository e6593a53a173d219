import json
import pathlib

import faiss
import numpy as np
import pytest

from pipeline.config.selection import NearestToSeeds, NearSeeds, SelectionConfig
from pipeline.selection.search import index_builder, inverted_lists, reference_sets
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


def test_enough_lists_are_searched_for_the_recall():
    images, queries = vectors(4000), vectors(300, rng_seed=1)
    index, recall = inverted_lists.build(images, queries)
    exact, _ = faiss.knn(queries, images, 1, metric=faiss.METRIC_INNER_PRODUCT)
    found, _ = index.search(queries, 1)
    assert recall.recall == pytest.approx((found >= exact - 1e-5).mean())
    assert recall.recall >= 0.99
    assert 1 < recall.n_lists_searched < recall.n_lists == 102
    assert (recall.n_vectors, recall.n_sampled) == (4000, 300)


def test_two_builds_have_the_same_bytes():
    images, queries = vectors(500), vectors(50, rng_seed=1)
    one, two = (
        faiss.serialize_index(inverted_lists.build(images, queries)[0]).tobytes()
        for _ in range(2)
    )
    assert one == two


def test_a_set_of_few_images_has_one_list():
    images = vectors(5)
    index, recall = inverted_lists.build(images, images)
    assert (recall.n_lists, recall.n_lists_searched, recall.recall) == (1, 1, 1)
    found = ReferenceSet("birds", index, np.arange(5).astype(str)).nearest(images)
    assert found[1].tolist() == list(range(5))


def test_lists_with_fewer_images_than_candidates_give_those_they_have():
    images = vectors(1000, dim=4)
    index, _ = inverted_lists.build(images, images[:10])
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


def test_a_set_of_that_size_is_exact(tmp_path):
    config = SelectionConfig(max_exact_set=100, retrieval=NearSeeds(0.99))
    run = make_run(str(tmp_path), config, POOL, seeds=SET)
    built = index_builder.build("seed_sets", run, run.seed_units, max_exact=100)
    index = reference_sets.open_index(built[0].index_path)
    assert isinstance(index, faiss.IndexFlat)
    assert not [*pathlib.Path(run.root, "indexes").glob("*.recall.json")]
