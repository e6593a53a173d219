import pathlib
import tempfile
import threading

import faiss
import numpy as np
import pytest

from pipeline.config.selection import SelectionConfig
from pipeline.selection import lot_decisions
from pipeline.selection.search import (
    embeddings,
    index_builder,
    reference_sets,
    search_steps,
)
from pipeline.selection.search.embeddings import normalize
from pipeline.selection.search.reference_sets import ReferenceSet
from pipeline.storage import files
from tests.support import served_store
from tests.support.score_tables import Row, make_run, write_scores

CONFIG = SelectionConfig()


def unit_vectors(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    vectors, _ = normalize(rng.standard_normal((n, dim)))
    return vectors


def reference_set(vectors: np.ndarray) -> ReferenceSet:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    keys = np.array([f"{i:05d}" for i in range(len(vectors))], dtype=object)
    return ReferenceSet("birds", index, keys)


def open_sets(run, lots) -> list[ReferenceSet]:
    return [
        ReferenceSet.open(p) for p in index_builder.build("evaluation_sets", run, lots)
    ]


def test_the_nearest_image_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    queries, vectors = unit_vectors(rng, 500, 24), unit_vectors(rng, 300, 24)
    similarity, image = reference_set(vectors).nearest(queries)
    cosines = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(image, cosines.argmax(axis=1))
    np.testing.assert_array_equal(similarity, cosines.max(axis=1).astype(np.float32))


def test_the_nearest_image_does_not_depend_on_what_is_searched_together():
    rng = np.random.default_rng(1)
    queries, vectors = unit_vectors(rng, 200, 48), unit_vectors(rng, 100, 48)
    references = reference_set(vectors)
    similarity, image = references.nearest(queries)
    for n in (1, 7, 64):
        parts = [references.nearest(queries[i : i + n]) for i in range(0, 200, n)]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), similarity)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), image)


@pytest.mark.parametrize("n_worse", range(4))
def test_of_equally_similar_images_the_first_is_the_nearest(n_worse):
    equal = [[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1]]
    images = [[-1, 0, 0]] * n_worse + equal[n_worse:]
    vectors, _ = normalize(np.array(images))
    queries = np.array([[1, 0, 0]] * 30, np.float32)  # many are searched another way
    for n in (1, 30):
        similarity, image = reference_set(vectors).nearest(queries[:n])
        assert image.tolist() == [n_worse] * n
        assert similarity.tolist() == [np.float32(0.5**0.5)] * n


def test_vectors_without_a_direction_are_found_out():
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1]], np.float16)
    vectors, has_direction = normalize(rows)
    assert has_direction.tolist() == [True, False, False, False]
    np.testing.assert_allclose(vectors[0], [0.6, 0.8], atol=1e-7)


def test_a_set_holds_its_distinct_readable_images_by_key(tmp_path):
    evaluation = {
        "birds/2": [Row(key="b", embedding=(1, 0)), Row(key="a", embedding=(0, 1))],
        "birds/1": [
            Row(key="c", embedding=(1, 0)),
            Row(key="0", embedding=(0, 0), error="truncated"),
        ],
        "apes/1": [Row(key="z", embedding=(0, -1))],
    }
    run = make_run(str(tmp_path), CONFIG, {"web/1": [Row()]}, evaluation=evaluation)
    sets = open_sets(run, run.evaluation_lots)
    assert [(s.name, s.keys.tolist()) for s in sets] == [
        ("apes", ["z"]),
        ("birds", ["a", "b"]),
    ]
    stored = sets[1].index.reconstruct_batch(np.arange(2))
    np.testing.assert_array_equal(stored, [[0, 1], [1, 0]])


def test_an_index_that_is_there_is_not_built_again(tmp_path):
    evaluation = {"birds/1": [Row()]}
    run = make_run(str(tmp_path), CONFIG, {"web/1": [Row()]}, evaluation=evaluation)
    first = index_builder.build("evaluation_sets", run, run.evaluation_lots)
    write_scores(run, run.evaluation_lots[0], [])
    assert index_builder.build("evaluation_sets", run, run.evaluation_lots) == first


def test_an_empty_set_is_an_error(tmp_path):
    evaluation = {"birds/1": [Row(embedding=(0, 0), error="truncated")], "apes/1": []}
    run = make_run(str(tmp_path), CONFIG, {"web/1": [Row()]}, evaluation=evaluation)
    for lot in run.evaluation_lots:
        with pytest.raises(ValueError, match="expected at least one readable image"):
            index_builder.build("evaluation_sets", run, [lot])


def test_a_set_of_another_width_is_an_error(tmp_path):
    seeds = {"birds/1": [Row(embedding=(1, 0, 0))]}
    run = make_run(str(tmp_path), CONFIG, {"web/1": [Row()]}, seeds=seeds)
    message = "seed_sets=birds: embeddings of 3 dimensions, expected 2 like the pool's"
    with pytest.raises(ValueError, match=message):
        index_builder.build("seed_sets", run, run.seed_lots)


def test_a_lot_of_another_width_is_an_error(tmp_path):
    shards = {"web/1": [Row()], "web/2": [Row(embedding=(1, 0, 0))]}
    run = make_run(str(tmp_path), CONFIG, shards, seeds={"birds/1": [Row()]})
    sets = open_sets(run, run.seed_lots)
    opened = lot_decisions.open_lot(run.lots[1], run)
    with pytest.raises(ValueError, match="3 dimensions, expected 2"):
        reference_sets.find_nearest(sets, run, opened, np.array([0]))


def test_rows_are_found_across_the_batches_of_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "ROWS_PER_SEARCH", 3)
    angles = np.linspace(0, 3, 10)
    rows = [Row(embedding=(np.cos(a), np.sin(a))) for a in angles]
    seeds = {"birds/1": [Row(embedding=(1, 0))]}
    run = make_run(str(tmp_path), CONFIG, {"web/1": rows}, seeds=seeds)
    sets = open_sets(run, run.seed_lots)
    opened = lot_decisions.open_lot(run.lots[0], run)
    for asked in ([0, 1, 2, 3, 8, 9], [9], [], list(range(10))):
        found = reference_sets.find_nearest(sets, run, opened, np.array(asked, int))
        expected = np.cos(angles[asked])
        np.testing.assert_allclose(found.similarity[0], expected, atol=1e-3)


def test_only_what_was_never_compared_is_searched(tmp_path):
    angles = np.linspace(0, 3, 10)
    rows = [Row(embedding=(np.cos(a), np.sin(a))) for a in angles]
    rows[3] = Row(embedding=(0, 0))
    seeds = {"birds/1": [Row(embedding=(1, 0))]}
    run = make_run(str(tmp_path), CONFIG, {"web/a[1]*": rows}, seeds=seeds)
    (lot,) = run.lots
    opened = lot_decisions.open_lot(lot, run)

    class Counting(ReferenceSet):
        def nearest(self, queries):
            n_searched.append(len(queries))
            return super().nearest(queries)

    (paths,) = index_builder.build("seed_sets", run, run.seed_lots)
    for asked, n_expected in [([1, 3, 5], [2]), ([1, 3, 5], []), ([0, 1, 3, 9], [2])]:
        n_searched: list[int] = []
        found = reference_sets.find_nearest(
            [Counting.open(paths)], run, opened, np.array(asked)
        )
        expected = np.where(np.array(asked) == 3, np.nan, np.cos(angles[asked]))
        np.testing.assert_allclose(found.similarity[0], expected, atol=1e-3)
        assert n_searched == n_expected


def test_sets_that_miss_different_rows_are_searched_together(tmp_path):
    angles = np.linspace(0, 3, 10)
    rows = [Row(embedding=(np.cos(a), np.sin(a))) for a in angles]
    rows[3] = Row(embedding=(0, 0))
    seeds = {"birds/1": [Row(embedding=(1, 0))], "cats/1": [Row(embedding=(0, 1))]}
    run = make_run(str(tmp_path), CONFIG, {"web/1": rows}, seeds=seeds)
    opened = lot_decisions.open_lot(run.lots[0], run)
    paths = index_builder.build("seed_sets", run, run.seed_lots)
    birds, cats = map(ReferenceSet.open, paths)
    reference_sets.find_nearest([birds], run, opened, np.array([1, 3, 5]))
    reference_sets.find_nearest([cats], run, opened, np.array([4, 5]))
    asked = np.array([0, 1, 3, 4, 5])
    found = reference_sets.find_nearest([birds, cats], run, opened, asked)
    vectors = np.stack([np.cos(angles), np.sin(angles)])
    vectors[:, 3] = np.nan
    np.testing.assert_allclose(found.similarity, vectors[:, asked], atol=1e-3)


def test_a_worker_process_searches_with_one_thread(tmp_path):
    run = make_run(str(tmp_path), CONFIG, {"web/1": [Row()]}, seeds={"s/1": [Row()]})
    n_threads = []

    def decide(opened, search):
        search(opened.kept_rows)
        n_threads.append(faiss.omp_get_max_threads())
        return opened

    def process(is_launcher: bool) -> None:
        step = search_steps.Search(
            run, index_builder.build("seed_sets", run, run.seed_lots), decide
        )
        if not is_launcher:
            step._launcher = ("elsewhere", 1)
        step.setup()
        list(step.process(lot_decisions.open_lot(run.lots[0], run)))

    for is_launcher in (False, True):
        thread = threading.Thread(target=process, args=[is_launcher])
        thread.start()
        thread.join()
    assert n_threads == [1, faiss.omp_get_max_threads()]


def test_an_index_elsewhere_is_copied_to_this_machine_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url, key = "gs://bucket/birds-0123.faiss", ("bucket", "birds-0123.faiss")
    with served_store.serve("gs") as store:
        store.objects[key] = b"index"
        copy = pathlib.Path(files.local_copy(url))
        assert copy.parent == tmp_path
        assert files.local_copy(url) == str(copy)
        assert store.counts() == {"head": 2, "get": 1}
        assert copy.read_bytes() == b"index"
        store.objects[key] = b"other"
        other = pathlib.Path(files.local_copy(url))
    assert other != copy
    assert other.read_bytes() == b"other"


def test_many_images_that_are_equal_up_to_rounding_are_compared_exactly():
    rng = np.random.default_rng(2)
    one = rng.standard_normal((1, 512), dtype=np.float32)
    crowd = one + 1e-6 * rng.standard_normal((300, 512), dtype=np.float32)
    vectors, _ = normalize(crowd)
    queries, _ = normalize(one + 0.1 * rng.standard_normal((50, 512)))
    similarity, image = reference_set(vectors).nearest(queries)
    cosines = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    rounded = cosines.astype(np.float32)
    np.testing.assert_array_equal(similarity, rounded.max(axis=1))
    np.testing.assert_array_equal(image, rounded.argmax(axis=1))


def test_no_query_has_no_nearest_image():
    vectors = unit_vectors(np.random.default_rng(3), 10, 8)
    similarity, image = reference_set(vectors).nearest(vectors[:0])
    assert similarity.shape == image.shape == (0,)
