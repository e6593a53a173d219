"""What fails in `caption` costs itself alone, is listed and can be asked for again."""

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest

from pipeline import curate
from pipeline.captioning import failed_captions
from pipeline.captioning.stage import Caption
from pipeline.engine import error_tables
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.error_tables import Failure
from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import Lot
from pipeline.storage.tables import from_table
from tests.support.tiny_run import (
    LONG,
    SHORT,
    FakeHandler,
    Row,
    encoded,
    make_run,
    plain_rows,
    run_stage,
)

WEB = {f"{i}": plain_rows(3, first=10 * i) for i in range(5)}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    monkeypatch.setattr(FakeHandler, "calls", [])
    return FakeHandler.calls


def caption(run: RunFolder) -> dict[str, int]:
    return run_stage(Caption(run, run.config.granularities, FakeHandler), run.lots)


def failures_of(run: RunFolder) -> list[Failure]:
    tables = error_tables.tables(run.root, "caption")
    names = sorted(tables.lot_names())
    return [row for name in names for row in from_table(tables.read(name), Failure)]


def shard_of(lot: Lot) -> Path:
    return Path(lot.shards[0].uri)


def allowing(run: RunFolder, max_failed_share: float) -> RunFolder:
    config = dataclasses.replace(run.config, max_failed_share=max_failed_share)
    return dataclasses.replace(run, config=config)


def write_plain(path: Path, rows: list[Row]) -> None:
    """The shard as it was, at the offsets that are recorded."""
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            for suffix, data in (("jpg", row.image), ("txt", row.alt_text.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_a_deleted_a_truncated_and_an_unreadable_shard_cost_their_captions_alone(
    tmp_path,
):
    run = make_run(tmp_path, WEB, granularities=(SHORT,))
    deleted, truncated, unreadable = map(shard_of, run.lots[:3])
    deleted.unlink()
    truncated.write_bytes(truncated.read_bytes()[:520])
    unreadable.unlink()
    unreadable.mkdir()
    counters = caption(run)
    assert counters["captions_failed"] == 9
    assert counters["captions_written"] == 6
    failures = failures_of(run)
    assert {(row.stage, row.shard) for row in failures} == {
        ("caption", str(path)) for path in (deleted, truncated, unreadable)
    }
    assert {row.lot for row in failures} == {lot.name for lot in run.lots[:3]}
    assert {row.short_reason for row in failures} == {
        "shard cannot be opened",
        "has changed since it was scored",
    }
    assert caption(run) == {"lots_skipped": 5}  # nothing is asked twice by itself
    failed_captions.check(allowing(run, 0.6), [SHORT])
    with pytest.raises(ValueError, match=r"max_failed_share=0.59: .* 9 of 15 did"):
        failed_captions.check(allowing(run, 0.59), [SHORT])


def test_what_failed_is_asked_for_again_once_it_is_forgotten(tmp_path, calls):
    run = make_run(tmp_path, WEB, granularities=(SHORT,))
    path = shard_of(run.lots[0])
    path.unlink()
    caption(run)
    write_plain(path, WEB["0"])
    calls.clear()
    assert curate.retry_failed(run, [SHORT]) == 3
    assert failures_of(run) == []
    counters = caption(run)
    assert (counters["captions_written"], counters["lots_skipped"]) == (3, 4)
    assert sum(n for kind, n in calls if kind == "encode") == 3
    failed_captions.check(run, [SHORT])
    assert curate.retry_failed(run, [SHORT]) == 0


def test_only_the_failed_captions_of_the_granularities_that_are_named_are_forgotten(
    tmp_path,
):
    rows = [*plain_rows(2), Row(b"\xff\xd8\xff broken"), Row(encoded((8, 8, 8)))]
    run = make_run(tmp_path, {"a": rows})
    (lot,) = run.lots
    caption(run)
    assert len(failures_of(run)) == 2
    assert curate.retry_failed(run, [LONG]) == 1
    n_rows = {
        one: len(list(CaptionTables.open(run.captions(one)).rows(lot)))
        for one in (SHORT, LONG)
    }
    assert n_rows == {SHORT: 4, LONG: 3}
    assert len(failures_of(run)) == 1
    assert caption(run)["captions_failed"] == 1
    assert len(failures_of(run)) == 2
