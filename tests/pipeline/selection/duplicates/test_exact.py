import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.selection import MinScore, SelectionConfig
from pipeline.records import Decision
from pipeline.selection.duplicates import exact
from pipeline.selection.duplicates.exact import Identities
from tests.support.score_tables import (
    Row,
    Shards,
    after_search,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
    select,
)

EXACT = SelectionConfig()


def by_id(image: str, *texts: str) -> list[str]:
    """The texts in ascending order of the sample ids that they make."""
    return sorted(texts, key=lambda text: sample_id(Row(text), image))


# Exact duplicates


def test_of_equal_pairs_the_first_by_path_and_row_stays(tmp_path):
    row = Row(image="cat")
    shards = {"web/2": [row], "web/1": [Row(), row, row], "more/1": [Row()]}
    run = make_run(str(tmp_path), EXACT, shards)
    select(run)
    decisions = read_decisions(run)
    kept_id = sample_id(row, "cat").hex()
    assert [(d.outcome, d.detail) for d in decisions["web/1"]] == [
        ("kept", ""),
        ("kept", ""),
        ("exact_duplicate", kept_id),
    ]
    (repeat,) = decisions["web/2"]
    assert (repeat.outcome, repeat.detail) == ("exact_duplicate", kept_id)
    assert (repeat.value, repeat.threshold) == (None, None)


def test_of_equal_images_the_pair_with_the_smallest_id_stays(tmp_path):
    first, second, third = by_id("cat", "a cat", "my cat", "two cats")
    shards = {
        "web/1": [Row(third, image="cat"), Row(second, image="cat")],
        "web/2": [Row(first, image="cat"), Row(first, image="dog")],
    }
    run = make_run(str(tmp_path), EXACT, shards)
    assert outcomes(run) == {
        "web/1": ["exact_duplicate", "exact_duplicate"],
        "web/2": ["kept", "kept"],
    }
    kept_id = sample_id(Row(first), "cat").hex()
    assert {d.detail for d in read_decisions(run)["web/1"]} == {kept_id}


def test_only_pairs_that_passed_the_earlier_steps_compete(tmp_path):
    first, second = by_id("cat", "a cat", "my cat")
    config = dataclasses.replace(EXACT, alignment=MinScore(0.5))
    rows = [
        Row(first, image="cat", score=0.1),
        Row(second, image="cat"),
        Row(first, image="cat", error="truncated"),
    ]
    run = make_run(str(tmp_path), config, {"web/1": rows})
    assert outcomes(run)["web/1"] == ["low_alignment", "kept", "unreadable"]


def test_sources_to_keep_whole_do_not_compete(tmp_path):
    row = Row(image="cat")
    shards = {"city/1": [row, row], "web/1": [row]}
    run = make_run(str(tmp_path), EXACT, shards, keep_all=["city"])
    assert outcomes(run) == {"city/1": ["kept", "kept"], "web/1": ["kept"]}


def test_exact_duplicates_can_be_kept(tmp_path):
    config = SelectionConfig(drop_exact_duplicates=False)
    run = make_run(str(tmp_path), config, {"web/1": [Row(image="a"), Row(image="a")]})
    assert outcomes(run)["web/1"] == ["kept", "kept"]


HASHES = st.sampled_from([0, 1, 255, 256, 2**63, 2**64 - 1])
WORDS = st.tuples(HASHES, HASHES)
PAIRS = st.tuples(st.sampled_from("abc"), WORDS, WORDS)  # unit, image hash, sample id


@settings(deadline=None)
@given(pairs=st.lists(PAIRS, min_size=1, max_size=30), rng=st.randoms())
def test_repeats_are_those_of_brute_force_in_any_order_of_blocks(pairs, rng):
    stays: dict[tuple, tuple] = {}
    for row, (unit, image, sample) in enumerate(pairs):
        stays[image] = min(stays.get(image, (sample, unit, row)), (sample, unit, row))
    expected = {
        (unit, row, stays[image][0])
        for row, (unit, image, sample) in enumerate(pairs)
        if stays[image] != (sample, unit, row)
    }
    blocks = [
        Identities(
            unit_name=unit,
            uri=unit,
            row=np.array([row for row, _ in group]),
            image_hash=np.array([p[1] for _, p in group], np.uint64),
            sample_id=np.array([p[2] for _, p in group], np.uint64),
        )
        for unit, group in _by_unit(pairs)
    ]
    rng.shuffle(blocks)
    found = {
        (unit, int(row), tuple(map(int, kept_id)))
        for unit, repeats in exact.find_repeats(0, blocks)
        for row, kept_id in zip(repeats.row, repeats.kept_id, strict=True)
    }
    assert found == expected


def _by_unit(pairs):
    numbered = sorted(enumerate(pairs), key=lambda item: item[1][0])
    groups = itertools.groupby(numbered, key=lambda item: item[1][0])
    return [(unit, list(group)) for unit, group in groups]


# Near-duplicates of evaluation images


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
    judge = exact.drop_near_evaluation
    return after_search(run, run.evaluation_units, judge, bound)


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
