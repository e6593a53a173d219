"""Tests of parts of shards: what a dead worker loses, and what lots take over."""

import dataclasses
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import lot_plan
from pipeline.records import content_hash
from pipeline.scoring import environment, parts, score_shard, shard_pass
from pipeline.scoring import stage as scoring
from pipeline.scoring.parts import Part
from pipeline.sources import shards
from tests.pipeline.scoring.test_stage import (
    make_run,
    png,
    rows_of,
    score,
    tables_of,
    texts_of,
    write_shard,
)

N_PAIRS = 11


@pytest.fixture
def crawl(tmp_path) -> Path:
    """Two shards of eleven pairs, of which some cannot be read."""
    for number, name in enumerate("ab"):
        pairs = [(png(20 * number + i), f"text {i}".encode()) for i in range(N_PAIRS)]
        pairs[4] = (b"no image", b"text")
        write_shard(tmp_path / f"{name}.tar", *pairs)
    return tmp_path


def lots_of(folder: Path, root: str, size: int = 2):
    run = make_run(folder, shards_per_lot=size)
    return dataclasses.replace(run, root=f"{folder}/{root}")


def interrupt_after(monkeypatch, n_pairs: int) -> None:
    """Makes the worker die once it has measured so many pairs of a shard."""
    add = shard_pass.ShardScores.add
    left = iter(range(n_pairs))

    def add_or_die(self, measured):
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, measured)

    monkeypatch.setattr(shard_pass.ShardScores, "add", add_or_die)


@pytest.mark.parametrize("n_pairs", [1, 3, 7, N_PAIRS + 4])
def test_a_worker_that_dies_loses_its_last_part_alone(crawl, monkeypatch, n_pairs):
    quiet, failing = lots_of(crawl, "quiet"), lots_of(crawl, "failing")
    whole = score(quiet)
    monkeypatch.setattr(score_shard, "PART_S", 0.0)  # a part ends with each batch
    with monkeypatch.context() as patch:
        interrupt_after(patch, n_pairs)
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            score(failing)
    rest = score(failing)
    assert rest["images_encoded"] <= whole["images_encoded"] - (n_pairs - 4)
    assert tables_of(failing) == tables_of(quiet)
    assert not list(Path(failing.root, parts.FOLDER).rglob("*.parquet"))


def test_parts_of_a_lot_that_is_sealed_are_removed_by_the_next_command(
    crawl, monkeypatch
):
    run = lots_of(crawl, "run")
    with monkeypatch.context() as patch:
        patch.setattr(parts.ShardParts, "delete", lambda self: None)  # killed before
        score(run)
    assert list(Path(run.root, parts.FOLDER).rglob("*.parquet"))
    scoring.remove_outdated(run)
    assert not list(Path(run.root, parts.FOLDER).rglob("*.parquet"))


def test_where_parts_end_changes_no_byte(crawl, monkeypatch):
    quiet, cut = lots_of(crawl, "quiet"), lots_of(crawl, "cut")
    score(quiet)
    monkeypatch.setattr(score_shard, "PART_S", 0.0)
    score(cut)
    assert tables_of(cut) == tables_of(quiet)


def test_the_last_part_of_a_shard_is_written_while_the_next_one_is_measured(
    crawl, monkeypatch
):
    run = lots_of(crawl, "run")
    next_is_begun = threading.Event()
    add, write = shard_pass.ShardScores.add, parts.ShardParts.write

    def add_and_tell(self, measured):
        if measured.pair.image_hash == content_hash(png(20)):
            next_is_begun.set()
        add(self, measured)

    def write_then(self, *args, **options):
        assert next_is_begun.wait(timeout=30)
        write(self, *args, **options)

    monkeypatch.setattr(shard_pass.ShardScores, "add", add_and_tell)
    monkeypatch.setattr(parts.ShardParts, "write", write_then)
    assert score(run)["pairs"] == 2 * N_PAIRS
    assert len(tables_of(run)) == 3


def test_a_lot_that_lost_a_shard_takes_the_rows_of_the_others_over(crawl):
    run = lots_of(crawl, "run")
    score(run)
    (crawl / "a.tar").unlink()
    (source,) = run.config.sources
    plan, lots = run.plan.add("pool", source, shards.list_marks(source), size=2)
    left = dataclasses.replace(run, lots=lots, plan=plan)
    assert score(left) == {"pairs_taken_over": N_PAIRS}
    assert texts_of(left, lots[0]) == texts_of(run, run.lots[0])[N_PAIRS:]
    numbers = left.pairs(lots[0].source).read(lots[0].name, ["shard"])["shard"]
    assert set(numbers.to_pylist()) == {0}


def test_a_shard_that_changed_is_scored_and_its_neighbors_are_taken_over(crawl):
    run = lots_of(crawl, "run")
    score(run)
    write_shard(crawl / "b.tar", *rows_of("one", "two"))
    (source,) = run.config.sources
    plan, lots = run.plan.add("pool", source, shards.list_marks(source), size=2)
    changed = dataclasses.replace(run, lots=lots, plan=plan)
    counters = score(changed)
    assert (counters["pairs_taken_over"], counters["pairs"]) == (N_PAIRS, 2)
    assert texts_of(changed, lots[0])[N_PAIRS:] == ["one", "two"]


def test_what_a_sample_scored_is_taken_over(crawl):
    run = lots_of(crawl, "run")
    (lot,) = run.lots
    sample = dataclasses.replace(run, lots=(lot_plan.single(lot.shards[1]),))
    score(sample)
    counters = score(run)
    assert (counters["pairs_taken_over"], counters["pairs"]) == (N_PAIRS, N_PAIRS)
    again = lots_of(crawl, "again")
    score(again)
    assert tables_of(again).items() <= tables_of(run).items()


def test_a_part_says_in_its_name_what_it_holds():
    part = Part(3, 5, 1, is_last=True)
    assert Part.parse(part.file_name) == part


@given(st.lists(st.integers(1, 4), max_size=6), st.lists(st.integers(1, 4), max_size=6))
def test_parts_of_two_workers_are_joined_without_gap_or_overlap(mine, others):
    made: set[Part] = set()
    for lengths in (mine, others):
        start = 0
        for n in lengths:
            made.add(Part(start, start + n, 0, is_last=False))
            start += n
    end = sum(mine)
    made.add(Part(end, end, 0, is_last=True))
    joined = parts.join(sorted(made))
    assert joined[-1] == Part(end, end, 0, is_last=True)
    assert [part.start for part in joined] == [0, *(p.stop for p in joined[:-1])]


def test_tables_say_in_which_environments_they_were_measured(crawl, monkeypatch):
    run = lots_of(crawl, "run", size=1)
    first = run.lots[0]
    score(dataclasses.replace(run, lots=(first,)))
    monkeypatch.setattr(environment, "_device_kind", lambda: "NVIDIA H200")
    score(run)
    tables = run.embeddings(first.source)
    found = [tables.read_summary(lot.name)["environments"] for lot in run.lots]
    assert [len(each) for each in found] == [1, 1]
    assert "batch_size 2, device " in found[0][0]
    mixed = environment.describe_mixture([*found[0], *found[1]])
    assert mixed == "device NVIDIA H200 or cpu"


def test_rows_that_are_taken_over_bring_their_environment(crawl, monkeypatch):
    run = lots_of(crawl, "run")
    (lot,) = run.lots
    sample = dataclasses.replace(run, lots=(lot_plan.single(lot.shards[1]),))
    score(sample)
    monkeypatch.setattr(environment, "_device_kind", lambda: "NVIDIA H200")
    score(run)
    found = run.embeddings(lot.source).read_summary(lot.name)["environments"]
    assert environment.describe_mixture(found) == "device NVIDIA H200 or cpu"
    assert environment.describe_mixture(found[:1]) == ""
