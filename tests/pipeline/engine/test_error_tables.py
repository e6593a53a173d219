"""Tables of errors: what they say of a pair, and when they go."""

import os
import socket

import pytest

from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine import error_tables
from pipeline.engine.error_tables import Failure
from pipeline.records import Pair
from pipeline.sources.shards import Lot, Shard, ShardError
from pipeline.storage.tables import from_table

SOURCE = ImageTextSource("web", "*")
SHARDS = (Shard(SOURCE, "/crawl/a.tar"), Shard(SOURCE, "/crawl/b\udcff.tar"))
LOT = Lot(SOURCE, "web-00000-0a1b", SHARDS)
GONE = ShardError("/crawl/a.tar: shard cannot be opened: No such file")
OTHER = ShardError("/crawl/b\udcff.tar has changed since it was scored: no '7'")


def pair(number, shard):
    return Pair(
        bytes([number]) * 16, "k", "", "", b"", "png", 1, 1, 1, 1, "", shard=shard
    )


def test_a_failure_names_shard_pair_reason_and_worker():
    failure = Failure.of("export", LOT, pair(1, 0), GONE)
    assert failure == Failure(
        stage="export",
        lot="web-00000-0a1b",
        shard="/crawl/a.tar",
        sample_id=b"\1" * 16,
        reason="shard cannot be opened: No such file",
        worker=f"{socket.gethostname()}-{os.getpid()}",
    )
    assert failure.short_reason == "shard cannot be opened"


def test_the_table_of_a_lot_says_how_its_last_attempt_ended(tmp_path):
    root = str(tmp_path)
    rows = [
        Failure.of("export", LOT, pair(n, s), error)
        for n, s, error in ((3, 1, OTHER), (2, 0, GONE), (1, 0, GONE))
    ]
    error_tables.write(root, "export", LOT.name, rows)
    tables = error_tables.tables(root, "export")
    assert tables.path(LOT.name) == f"{root}/errors/export/{LOT.name}.parquet"
    found = from_table(tables.read(LOT.name), Failure)
    assert found == rows[::-1]
    assert found[-1].shard == "/crawl/b[U+DCFF].tar"
    assert tables.read_summary(LOT.name)["reasons"] == {
        "has changed since it was scored": 1,
        "shard cannot be opened": 2,
    }
    error_tables.write(root, "export", LOT.name, [])
    error_tables.write(root, "export", LOT.name, [])
    assert not any((tmp_path / "errors" / "export").iterdir())


def test_failures_are_refused_only_above_the_share_of_the_recipe():
    reasons = {"shard cannot be opened": 2}
    error_tables.expect_few("RUN", "export", reasons, 200, 0.01)
    expected = (
        "max_failed_share=0.01: expected at most that share of 199 images to fail in"
        r" `export`, but 2 did \(2 x shard cannot be opened\); RUN/errors/export names"
    )
    with pytest.raises(ValueError, match=expected):
        error_tables.expect_few("RUN", "export", reasons, 199, 0.01)


def test_the_bound_is_a_share_and_no_part_of_what_a_recipe_makes():
    config = CurationConfig(EncoderConfig("tiny"), SelectionConfig())
    other = CurationConfig(
        EncoderConfig("tiny"), SelectionConfig(), max_failed_share=0.5
    )
    assert repr(other) == repr(config)
    with pytest.raises(ValueError, match="max_failed_share=2: expected a share from"):
        CurationConfig(EncoderConfig("tiny"), SelectionConfig(), max_failed_share=2)
