"""Images that are gone at export: left out, counted, named, and tried again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import records
from pipeline.engine import error_tables
from pipeline.engine.error_tables import Failure
from pipeline.export.completeness import is_complete, stale_lots
from pipeline.export.publishing import publish
from pipeline.export.shard_formats import TFRECORD, WEBDATASET
from pipeline.export.stage import Export
from pipeline.storage.tables import from_table
from tests.support.tiny_run import (
    SHORT,
    Row,
    bytes_of,
    make_run,
    plain_rows,
    run_stage,
    write_captions,
)

ROWS = {
    "deleted": plain_rows(2),
    "truncated": plain_rows(3, first=10),
    "changed": plain_rows(2, first=20),
    "whole": plain_rows(3, first=30),
}


def export(run, shard_format=TFRECORD):
    counters = run_stage(Export(run, shard_format), stale_lots(run, shard_format))
    return {**counters, **publish(run, shard_format)}


def manifest_of(run):
    return json.loads(Path(TFRECORD.path(run.root), "manifest.json").read_text())


def texts_of(run):
    found = []
    folder = Path(TFRECORD.path(run.root))
    for shard in manifest_of(run)["shards"]:
        data = (folder / shard["name"]).read_bytes()
        index = np.fromfile(folder / f"{shard['name']}.index", records.INDEX_DTYPE)
        found += [
            records.parse_sample(data[start : start + n]).alt_text
            for start, n in index.tolist()
        ]
    return sorted(found)


def captioned_run(root, rows, max_failed_share):
    run = make_run(
        root, rows, granularities=(SHORT,), max_failed_share=max_failed_share
    )
    write_captions(run, rows, (SHORT,))
    return run


def damage(run):
    """Returns what puts the shards back."""
    stem_to_path = {Path(u.shards[0].uri).stem: Path(u.shards[0].uri) for u in run.lots}
    before = {path: path.read_bytes() for path in stem_to_path.values()}
    stem_to_path["deleted"].unlink()
    path = stem_to_path["truncated"]
    path.write_bytes(before[path][:1500])  # the first image and its text
    path = stem_to_path["changed"]
    path.write_bytes(before[path].replace(b"IDAT", b"IDAX", 1))

    def restore():
        for path, data in before.items():
            path.write_bytes(data)

    return restore


def test_images_that_are_gone_are_left_out_and_come_back_with_their_shards(tmp_path):
    run = captioned_run(tmp_path, ROWS, max_failed_share=0.5)
    export(run)
    whole = bytes_of(TFRECORD.path(run.root))
    for path in Path(TFRECORD.path(run.root)).rglob("*.*"):
        path.unlink()
    restore = damage(run)
    assert export(run) == {
        "samples_written": 5,
        "shards_written": 3,
        "images_failed": 5,
    }
    assert texts_of(run) == ["text 10", "text 21", "text 30", "text 31", "text 32"]
    found = manifest_of(run)
    assert found["n_samples"] == 5
    assert found["n_failed"] == 5
    assert found["failures"] == {
        "has changed since it was scored": 3,
        "shard cannot be opened": 2,
    }
    rows = failures_of(run)
    assert {Path(row.shard).stem for row in rows} == {"deleted", "truncated", "changed"}
    ids = {records.sample_id(r.image, r.alt_text.encode()) for r in ROWS["deleted"]}
    assert {row.sample_id for row in rows if "deleted" in row.shard} == ids
    assert {row.stage for row in rows} == {"export"}

    assert not is_complete(run)
    before = bytes_of(TFRECORD.path(run.root))
    assert export(run)["images_failed"] == 5  # tried again
    assert bytes_of(TFRECORD.path(run.root)) == before

    restore()
    assert export(run)["samples_written"] == 7
    assert bytes_of(TFRECORD.path(run.root)) == whole
    assert failures_of(run) == []
    assert is_complete(run)


def test_a_set_of_another_format_leaves_the_failures_of_the_first_one(tmp_path):
    run = captioned_run(tmp_path, ROWS, max_failed_share=0.5)
    restore = damage(run)
    export(run)
    failures = failures_of(run)
    assert len(failures) == 5
    assert export(run, WEBDATASET)["images_failed"] == 5
    restore()
    assert "images_failed" not in export(run, WEBDATASET)
    assert failures_of(run, WEBDATASET) == []
    assert failures_of(run) == failures


def failures_of(run, shard_format=TFRECORD):
    tables = error_tables.tables(run.root, shard_format.errors)
    names = sorted(tables.lot_names())
    return [row for name in names for row in from_table(tables.read(name), Failure)]


def test_more_failures_than_the_recipe_allows_leave_the_old_set_as_it_is(tmp_path):
    run = captioned_run(tmp_path, ROWS, max_failed_share=0.1)
    export(run)
    folder = TFRECORD.path(run.root)
    before = bytes_of(folder)
    damage(run)
    run = dataclasses.replace(run, config=smaller(run.config))
    expected = (
        "max_failed_share=0.1: expected at most that share of 10 images to fail in"
        r" `export-tfrecords`, but 5 did \(.*2 x shard cannot be opened\);"
    )
    with pytest.raises(ValueError, match=expected):
        export(run)
    after = bytes_of(folder)
    kept = [name for name in before if not name.startswith("lots/")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert len(failures_of(run)) == 5


def smaller(config):
    export_config = dataclasses.replace(config.export, max_side_px=4)
    return dataclasses.replace(config, export=export_config)


def test_an_image_that_no_decoder_reads_is_a_failure_of_its_own(tmp_path):
    broken = Row(b"\xff\xd8\xff broken", "a broken one")
    run = captioned_run(tmp_path, {"a": [*plain_rows(2), broken]}, 0.4)
    export(run)
    assert texts_of(run) == ["text 0", "text 1"]
    (row,) = failures_of(run)
    assert row.sample_id == records.sample_id(broken.image, b"a broken one")
