"""Blocks of images: full batches across the shards of a lot, and restart by block."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.captioning import blocks
from pipeline.captioning.blocks import MAX_IMAGES, PlanBlocks
from pipeline.captioning.captioner_handler import CaptionTarget
from pipeline.captioning.coverage import CaptionInputs
from pipeline.captioning.stage import Caption
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.sources.shards import Lot
from tests.support.tiny_run import (
    LONG,
    SHORT,
    FakeHandler,
    Row,
    bytes_of,
    encoded,
    make_run,
    run_stage,
)

BATCH = 64  # images, as of the recipes
SHARDS, ROWS_PER_SHARD = 100, 10_000
WEB = {
    f"{shard:02d}": [
        Row(encoded((shard, number, 9)), outcome=outcome)
        for number, outcome in enumerate(["kept", DropReason.LANGUAGE, "kept"])
    ]
    for shard in range(21)
}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """What models were asked for, with numbers of rows."""
    monkeypatch.setattr(FakeHandler, "calls", [])
    return FakeHandler.calls


@pytest.fixture
def lot(tmp_path) -> RunFolder:
    """21 shards of two kept images each, as one lot."""
    return as_one_lot(make_run(tmp_path, WEB))


def as_one_lot(run: RunFolder) -> RunFolder:
    """The lots of one shard each joined into one."""
    source, lots = run.config.sources[0], run.lots
    lot = Lot(source, "web-00000-d1", tuple(shard for u in lots for shard in u.shards))
    for tables in (run.pairs(source), run.decisions):
        parts = [tables.read(one.name) for one in lots]
        if tables.folder == run.pairs(source).folder:
            at = parts[0].schema.get_field_index("shard")
            parts = [
                part.set_column(at, "shard", pa.array([number] * len(part), pa.int64()))
                for number, part in enumerate(parts)
            ]
        tables.write(lot.name, pa.concat_tables(parts))
    return dataclasses.replace(run, lots=(lot,))


def caption(run: RunFolder) -> dict[str, int]:
    return run_stage(Caption(run, run.config.granularities, FakeHandler), run.lots)


def planned(run: RunFolder, max_images: int = MAX_IMAGES) -> list[blocks.Block]:
    targets = [CaptionTarget(g, "f", run.captions(g)) for g in run.config.granularities]
    inputs = CaptionInputs.of(run)
    return [
        block
        for lot in run.lots
        for block in PlanBlocks(inputs, targets, max_images).process(lot)
    ]


def texts_of(run: RunFolder) -> set[str]:
    tables = CaptionTables.open(run.captions(SHORT))
    return {row.text for lot in run.lots for row in tables.rows(lot)}


def test_batches_span_shards_and_are_full_but_for_the_last_of_the_lot(lot, calls):
    counters = caption(lot)
    assert [n for kind, n in calls if kind == "encode"] == [4] * 10 + [2]
    assert (counters["images_encoded"], counters["caption_slots"]) == (42, 44)


def test_captions_do_not_depend_on_how_shards_make_lots_and_blocks(
    lot, tmp_path, monkeypatch
):
    caption(lot)
    apart = make_run(tmp_path / "apart", WEB)
    caption(apart)
    assert texts_of(lot) == texts_of(apart)
    small = as_one_lot(make_run(tmp_path / "small", WEB))
    monkeypatch.setattr(PlanBlocks.__init__, "__defaults__", (8,))
    caption(small)
    assert len(CaptionTables.open(small.captions(SHORT)).names(small.lots[0])) == 6
    assert texts_of(small) == texts_of(lot)


def test_a_lot_that_lost_blocks_cuts_the_same_ones_again(lot, monkeypatch, calls):
    monkeypatch.setattr(PlanBlocks.__init__, "__defaults__", (8,))
    caption(lot)
    undisturbed = bytes_of(lot.root)
    for granularity, lost in ((SHORT, (0, 3)), (LONG, (3, 5))):
        tables = CaptionTables.open(lot.captions(granularity))
        names = tables.names(lot.lots[0])
        tables.tables.delete([names[number] for number in lost])
    calls.clear()
    counters = caption(lot)
    assert counters["images_encoded"] <= 4 * 8
    assert bytes_of(lot.root) == undisturbed


def test_images_that_lack_other_captions_are_in_other_blocks(lot):
    caption(lot)
    tables = CaptionTables.open(lot.captions(LONG))
    tables.tables.delete(tables.names(lot.lots[0]))
    (block,) = planned(lot)
    assert [one.granularity for one in block.targets] == [LONG]
    assert len(block.requests) == 42


@pytest.mark.parametrize("keep_rate", [0.0117, 0.003])
def test_at_the_keep_rates_of_tips_98_percent_of_all_slots_are_filled(
    tmp_path, keep_rate
):
    run = make_run(tmp_path, {"a": []}, granularities=(SHORT,))
    (lot,) = run.lots
    write_lot(run, lot, keep_rate)
    sizes = [len(block.requests) for block in planned(run)]
    assert sizes[:-1] == [MAX_IMAGES] * (len(sizes) - 1)
    slots = sum(math.ceil(size / BATCH) * BATCH for size in sizes)
    assert sum(sizes) == pytest.approx(keep_rate * SHARDS * ROWS_PER_SHARD, rel=0.1)
    assert sum(sizes) >= 0.98 * slots


def write_lot(run: RunFolder, lot: Lot, keep_rate: float) -> None:
    """Pairs and decisions of a lot of the usual size, without images."""
    rng = np.random.default_rng(0)
    n = SHARDS * ROWS_PER_SHARD
    hashes = rng.integers(0, 2**63, (n, 2)).tobytes()
    ids = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), n, [None, pa.py_buffer(hashes)]
    ).cast(pa.binary())
    numbers = np.arange(n)
    pairs = {
        "sample_id": ids,
        "key": pa.array(["k"]).take(np.zeros(n, np.int64)),
        "image_hash": ids,
        "shard": numbers // ROWS_PER_SHARD,
        "offset": numbers % ROWS_PER_SHARD,
        "n_bytes": np.full(n, 9),
    }
    is_dropped = (rng.random(n) >= keep_rate).astype(int)
    outcomes = pa.array(["kept", "balance"]).take(is_dropped)
    run.pairs(lot.source).write(lot.name, pa.table(pairs))
    run.decisions.write(lot.name, pa.table({"outcome": outcomes}))
