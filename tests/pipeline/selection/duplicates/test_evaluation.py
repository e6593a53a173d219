import numpy as np
import pytest

from pipeline.config.selection import SelectionConfig
from pipeline.records import Decision
from pipeline.selection.duplicates.evaluation import drop_near_evaluation
from tests.support.score_tables import Row, Shards, after_search, make_run


def near_evaluation(
    tmp_path, evaluation: Shards, bound: float, *rows: Row, keep_all=()
) -> list[Decision]:
    run = make_run(
        str(tmp_path),
        SelectionConfig(),
        {"web/1": rows},
        evaluation=evaluation,
        keep_all=keep_all,
    )
    decide = drop_near_evaluation
    return after_search(run, run.evaluation_lots, decide, bound)


def test_more_similar_than_the_bound_is_dropped_with_the_image_it_repeats(tmp_path):
    evaluation = {"birds/1": [Row(key="wren", embedding=(2, 1))]}
    rows = [Row(embedding=(1, 0)), Row(embedding=(0, 1)), Row(embedding=(-1, 1))]
    near, *rest = near_evaluation(tmp_path, evaluation, 0.75, *rows)
    assert near.outcome == "near_evaluation"
    assert near.value == pytest.approx(2 / 5**0.5, abs=1e-6)
    assert (near.threshold, near.detail) == (0.75, "birds:wren")
    assert [d.outcome for d in rest] == ["kept", "kept"]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (1.0, ["kept", "kept", "kept"]),
        (0.0, ["near_evaluation", "kept", "kept"]),
        (-1.0, ["near_evaluation", "near_evaluation", "kept"]),
    ],
)
def test_the_bound_itself_is_no_near_duplicate(tmp_path, bound, expected):
    evaluation = {"birds/1": [Row(embedding=(1, 0))]}
    rows = [Row(embedding=(1, 0)), Row(embedding=(0, 1)), Row(embedding=(-1, 0))]
    decided = near_evaluation(tmp_path, evaluation, bound, *rows)
    assert [decision.outcome for decision in decided] == expected


def test_the_most_similar_image_is_named_and_of_equal_ones_the_first(tmp_path):
    evaluation = {
        "b/1": [Row(key="x", embedding=(1, 0)), Row(key="y", embedding=(0, 1))],
        "a/2": [Row(key="9", embedding=(1, 0)), Row(key="z", embedding=(0.9, 1))],
        "a/1": [Row(key="10", embedding=(1, 0))],
    }
    rows = [Row(embedding=(1, 0)), Row(embedding=(0, 1))]
    decided = near_evaluation(tmp_path, evaluation, 0.5, *rows)
    assert [decision.detail for decision in decided] == ["a:10", "b:y"]


def test_sources_to_keep_whole_lose_their_near_duplicates_too(tmp_path):
    evaluation = {"birds/1": [Row()]}
    rows = [Row("", score=np.nan), Row(embedding=(0, 1))]
    decided = near_evaluation(tmp_path, evaluation, 0.5, *rows, keep_all=["web"])
    assert [decision.outcome for decision in decided] == ["near_evaluation", "kept"]


@pytest.mark.parametrize("embedding", [(0, 0), (np.nan, 1), (np.inf, 0)])
def test_an_image_without_an_embedding_is_dropped(tmp_path, embedding):
    rows = [Row(embedding=embedding), Row(embedding=(0, 1))]
    unknown, kept = near_evaluation(tmp_path, {"birds/1": [Row()]}, 1.0, *rows)
    assert (unknown.outcome, unknown.value) == ("near_evaluation", None)
    assert unknown.detail == "no embedding"
    assert kept.outcome == "kept"


@pytest.mark.parametrize("spread", [0.2, 5.0])
def test_what_is_near_an_evaluation_image_is_what_brute_force_finds(tmp_path, spread):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((60, 4))
    pool, reference = (
        np.float16(centers[rng.integers(60, size=n)] + rng.normal(0, spread, (n, 4)))
        for n in (600, 90)
    )
    evaluation = {"birds/1": [Row(embedding=tuple(v)) for v in reference.tolist()]}
    rows = [Row(embedding=tuple(v)) for v in pool.tolist()]
    decided = near_evaluation(tmp_path, evaluation, 0.95, *rows)
    a, b = (v.astype(float) for v in (pool, reference))
    length = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    best = (a @ b.T / length).max(axis=1)
    is_near = best > 0.95
    assert 10 < is_near.sum() < 590
    assert [d.outcome == "near_evaluation" for d in decided] == is_near.tolist()
    found = [d.value for d in decided if d.value is not None]
    np.testing.assert_allclose(found, best[is_near], atol=1e-6)
