"""Manifests that are swapped: readers beside it, other writers, and kills."""

import dataclasses
import json
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.curation import ExportConfig
from pipeline.export import manifest, publishing, receipts
from pipeline.export.completeness import is_complete, stale_lots
from pipeline.export.publishing import publish
from pipeline.export.receipts import Counts, Receipt, ShardFacts
from pipeline.export.shard_formats import TFRECORD
from pipeline.export.stage import Export
from pipeline.storage import files
from tests.support.tiny_run import (
    bytes_of,
    make_run,
    plain_rows,
    run_stage,
    write_captions,
)

LOTS = {"a": plain_rows(3), "b": plain_rows(2, first=10)}
N_KILLS = 8

PROCESSES = multiprocessing.get_context("fork")


def captioned_run(root, **changes):
    run = make_run(root, LOTS, **changes)
    write_captions(run, LOTS, run.config.granularities)
    return run


def export(run):
    if stale := stale_lots(run):
        run_stage(Export(run), stale)
    publish(run)


def take_turn(run, number):
    """Puts another shard into each lot, as an export of other samples would."""
    folder = TFRECORD.path(run.root)
    for lot in run.lots:
        name = TFRECORD.shard_name(lot.base, 0, f"{number:012x}")
        files.write(files.join(folder, f"{name}.index"), b"")
        files.write(files.join(folder, name), b"")
        names = {granularity.name: 0 for granularity in run.config.granularities}
        counts = Counts({}, names, {name: {} for name in names})
        shards = (ShardFacts(name, 1, 0, f"{number:x}"),)
        receipts.write(folder, lot.name, Receipt({}, counts, shards, {}))


class Reader(threading.Thread):
    """Reads manifests and looks for what they name, until it is told to stop."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
        self.stop = threading.Event()
        self.n_read = self.n_swapped = 0
        self.errors = []

    def run(self):
        while not self.stop.is_set():
            text = (self.folder / "manifest.json").read_text()
            names = [shard["name"] for shard in json.loads(text)["shards"]]
            paths = [
                self.folder / f"{name}{s}" for name in names for s in ("", ".index")
            ]
            if not all(path.exists() for path in paths):
                if (self.folder / "manifest.json").read_text() == text:
                    self.errors.append(text)
                self.n_swapped += 1
            self.n_read += 1


@pytest.mark.parametrize("n_swaps", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_reader_finds_the_shards_of_its_manifest_or_another_manifest(
    tmp_path, monkeypatch, n_swaps
):
    run = captioned_run(tmp_path)
    header = publishing.manifest.header(run)
    monkeypatch.setattr(publishing.manifest, "header", lambda run: dict(header))
    take_turn(run, 0)
    publish(run)
    reader = Reader(TFRECORD.path(run.root))
    reader.start()
    for number in range(1, n_swaps + 1):
        take_turn(run, number)
        publish(run)
    reader.stop.set()
    reader.join()
    assert reader.errors == []
    assert reader.n_read > 10
    assert len(list(reader.folder.glob("*.tfrecord"))) == 2


def test_another_export_that_swapped_the_manifest_is_not_written_over(
    tmp_path, monkeypatch
):
    run = captioned_run(tmp_path)
    export(run)
    changed = dataclasses.replace(run.config, export=ExportConfig(samples_per_shard=1))
    run = dataclasses.replace(run, config=changed)
    monkeypatch.setattr(files, "replace", lambda *arguments: False)
    with pytest.raises(ValueError, match="expected no other export to write it mean"):
        export(run)


def test_what_a_killed_export_had_still_to_remove_is_removed_by_the_next(
    tmp_path, monkeypatch
):
    run = captioned_run(tmp_path)
    export(run)
    changed = dataclasses.replace(run.config, export=ExportConfig(samples_per_shard=1))
    run = dataclasses.replace(run, config=changed)
    with monkeypatch.context() as patched:
        patched.setattr(files, "delete", killed)
        with pytest.raises(OSError, match="killed"):
            export(run)
    folder = Path(TFRECORD.path(run.root))
    named = manifest.file_names(
        shard["name"]
        for shard in json.loads((folder / manifest.NAME).read_text())["shards"]
    )
    assert {path.name for path in folder.glob("train-*")} > named
    assert not is_complete(run)
    assert stale_lots(run) == []
    export(run)
    assert is_complete(run)
    assert {path.name for path in folder.glob("train-*")} == named


def killed(*arguments):
    raise OSError("killed")


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_set_and_the_next_export_ends_it(tmp_path):
    run = captioned_run(tmp_path)
    export(run)
    old = bytes_of(TFRECORD.path(run.root))
    other = ExportConfig(samples_per_shard=1)
    changed = dataclasses.replace(
        run, config=dataclasses.replace(run.config, export=other)
    )
    quiet = dataclasses.replace(changed, root=str(tmp_path / "quiet" / "run"))
    files_of_run = bytes_of(run.root)
    for name, data in files_of_run.items():
        path = Path(quiet.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    start = time.monotonic()
    export(quiet)
    wall_s = time.monotonic() - start
    new = bytes_of(TFRECORD.path(quiet.root))
    rng = np.random.default_rng(0)
    manifests = [old["manifest.json"], new["manifest.json"]]
    for _ in range(N_KILLS):
        process = PROCESSES.Process(target=export, args=(changed,))
        process.start()
        process.join(rng.uniform(0, 1.2 * wall_s))
        process.kill()
        process.join()
        found = bytes_of(TFRECORD.path(run.root))
        assert found["manifest.json"] in manifests
        for shard in json.loads(found["manifest.json"])["shards"]:
            name = shard["name"]
            whole = old if name in old else new
            assert found[name] == whole[name]
            assert found[f"{name}.index"] == whole[f"{name}.index"]
    export(changed)
    names = [n for n in bytes_of(TFRECORD.path(run.root)) if not n.endswith(".tmp")]
    assert {n: bytes_of(TFRECORD.path(run.root))[n] for n in names} == new
