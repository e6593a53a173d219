"""Retrieval decides alike in any order of work, on any shards and in any process."""

import itertools
import pathlib

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.config.selection import (
    NearestToSeeds,
    Retrieval,
    SeededClusters,
    SelectionConfig,
)
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Decision
from pipeline.selection import stage as selection
from tests.support.score_tables import Row, Shards, make_run, read_decisions, select

RETRIEVALS = (
    NearestToSeeds(k=3, set_to_k={"trees": 5}),
    SeededClusters(
        n_clusters=6,
        min_seeds=2,
        max_per_cluster=4,
        max_per_set=9,
        n_iterations=2,
        n_training=8,  # of 60 images, some are no part of the training
    ),
)


def random_rows(n: int, rng_seed: int) -> list[Row]:
    """Distinct images, of which some have equal embeddings."""
    rng = np.random.default_rng(rng_seed)
    embeddings = rng.standard_normal((n, 4))[rng.integers(n, size=n)]
    return [
        Row(image=f"image {i}", embedding=tuple(embedding))
        for i, embedding in enumerate(embeddings)
    ]


ROWS = random_rows(60, rng_seed=0)
SHARDS = {f"web/{i}": ROWS[15 * i : 15 * i + 15] for i in range(4)}
SEEDS = {"flowers/1": random_rows(8, rng_seed=1), "trees/1": random_rows(6, rng_seed=2)}


def make(
    folder: pathlib.Path, retrieval: Retrieval, shards: Shards = SHARDS
) -> RunFolder:
    config = SelectionConfig(retrieval=retrieval)
    return make_run(str(folder), config, shards, seeds=SEEDS)


def stored_bytes(folder: pathlib.Path) -> dict[str, bytes]:
    """What a run has written, but for its scores."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("decisions", "clusters", "indexes")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def id_to_decision(run: RunFolder) -> dict[bytes, Decision]:
    decisions = itertools.chain(*read_decisions(run).values())
    return {decision.sample_id: decision for decision in decisions}


@pytest.mark.slow
@pytest.mark.parametrize("retrieval", RETRIEVALS, ids=["nearest", "clusters"])
def test_neither_the_order_nor_the_size_of_shards_changes_a_decision(
    tmp_path, retrieval
):
    run = make(tmp_path / "four", retrieval)
    select(run)
    other = make(tmp_path / "order", retrieval)
    select(other, lots=[other.lots[i] for i in (2, 0, 3, 1)])
    assert stored_bytes(tmp_path / "order") == stored_bytes(tmp_path / "four")

    shuffled = [ROWS[i] for i in np.random.default_rng(3).permutation(len(ROWS))]
    one = make(tmp_path / "one", retrieval, {"web/1": shuffled})
    select(one)
    expected = id_to_decision(run)
    assert id_to_decision(one) == expected
    assert len(expected) == len(ROWS)
    n_kept = sum(decision.outcome == "kept" for decision in expected.values())
    assert 5 < n_kept < 40


@pytest.mark.slow
@pytest.mark.parametrize("retrieval", RETRIEVALS, ids=["nearest", "clusters"])
def test_two_processes_write_what_one_does(tmp_path, retrieval):
    run = make(tmp_path / "one", retrieval)
    select(run)
    other = make(tmp_path / "two", retrieval)
    options = PipelineOptions()
    options.view_as(DirectOptions).direct_num_workers = 2
    options.view_as(DirectOptions).direct_running_mode = "multi_processing"
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        _ = pipeline | beam.Create(other.lots) | selection.Select(other)
    assert stored_bytes(tmp_path / "two") == stored_bytes(tmp_path / "one")
