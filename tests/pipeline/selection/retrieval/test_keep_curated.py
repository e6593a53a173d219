import numpy as np
import pytest

from pipeline.config.selection import SelectionConfig
from pipeline.records import Decision
from pipeline.selection.retrieval import keep_curated
from tests.support.score_tables import Row, Shards, after_search, make_run

SEEDS = {
    "flowers/1": [Row(key="rose", embedding=(1, 0, 0))],
    "trees/2": [Row(key="oak", embedding=(0, 1, 0))],
    "trees/1": [
        Row(key="elm", embedding=(0, 1, 1)),
        Row(error="x", embedding=(0,) * 3),
    ],
}
ONE_SEED = {"flowers/1": [Row(embedding=(1, 0))]}


def near_seeds(
    tmp_path, seeds: Shards, bound: float, *rows: Row, keep_all=()
) -> list[Decision]:
    run = make_run(
        str(tmp_path),
        SelectionConfig(),
        {"web/1": rows},
        seeds=seeds,
        keep_all=keep_all,
    )
    return after_search(run, run.seed_lots, keep_curated.keep_near_seeds, bound)


def test_images_near_a_seed_are_kept_with_all_sets_that_want_them(tmp_path):
    *kept, far = near_seeds(
        tmp_path,
        SEEDS,
        0.5,
        Row(embedding=(1, 0, 0)),
        Row(embedding=(1, 1, 0)),
        Row(embedding=(0, 0, 1)),
        Row(embedding=(-1, 0, -1)),
    )
    assert [(d.outcome, d.seeds) for d in kept] == [
        ("kept", ("flowers",)),
        ("kept", ("flowers", "trees")),
        ("kept", ("trees",)),
    ]
    assert {(d.value, d.threshold, d.detail) for d in kept} == {(None, None, "")}
    assert (far.outcome, far.seeds) == ("far_from_seeds", ())
    assert (far.value, far.threshold, far.detail) == (0.0, 0.5, "trees:oak")


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (1.0, ["kept", "far_from_seeds", "far_from_seeds"]),
        (0.0, ["kept", "kept", "far_from_seeds"]),
        (-1.0, ["kept", "kept", "kept"]),
    ],
)
def test_the_bound_itself_is_near_enough(tmp_path, bound, expected):
    rows = [Row(embedding=(1, 0)), Row(embedding=(0, 1)), Row(embedding=(-1, 0))]
    decided = near_seeds(tmp_path, ONE_SEED, bound, *rows)
    assert [decision.outcome for decision in decided] == expected


def test_an_image_without_an_embedding_is_far(tmp_path):
    row = Row(embedding=(np.nan, 0))
    (decision,) = near_seeds(tmp_path, ONE_SEED, -1.0, row)
    assert (decision.outcome, decision.value) == ("far_from_seeds", None)
    assert decision.detail == "no embedding"


def test_nothing_is_retrieved_from_sources_to_keep_whole(tmp_path):
    rows = [Row(embedding=(-1, 0)), Row(embedding=(1, 0)), Row(error="truncated")]
    decided = near_seeds(tmp_path, ONE_SEED, 0.5, *rows, keep_all=["web"])
    assert [(d.outcome, d.seeds) for d in decided] == [
        ("kept", ()),
        ("kept", ()),
        ("unreadable", ()),
    ]
