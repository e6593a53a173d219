"""Shards that are lost while a command runs cost their images alone, up to a bound."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import curate, run
from pipeline.engine import error_tables
from pipeline.engine.error_tables import Failure
from pipeline.storage.tables import from_table
from tests.support import small_run, tiny_checkpoints
from tests.support.tiny_run import Row, write_shard

# Of six shards the first three, which are lost, have an image each.
N_PAIRS = (1, 1, 1, 5, 5, 5)
LOST = ("0.tar", "1.tar", "2.tar")
N_LEFT = 15
STAGE_TO_FOLDER = {"caption": "caption", "export": "export-tfrecords"}

ONE_GRANULARITY = """
import dataclasses
with_two = get_config

def get_config():
    config = with_two()
    return dataclasses.replace(config, granularities=config.granularities[:1])
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A crawl, and a run over it up to `select`, in `run`."""
    web = tmp_path_factory.mktemp("web")
    small_run.write(web)
    recipe = web / "recipe.py"
    recipe.write_text(recipe.read_text() + ONE_GRANULARITY)
    images = iter(tiny_checkpoints.random_images(30)[8:])  # none of evaluation
    for number, n in enumerate(N_PAIRS):
        rows = [
            Row(small_run._png(next(images)), f"picture {i} of {number}")
            for i in range(n)
        ]
        write_shard(web / "crawl" / f"{number}.tar", rows)
    for stage in ("score", "select"):
        run.main(small_run.arguments(stage, str(web), str(web / "run")))
    assert json.loads((web / "run" / "ledger.json").read_text())["kept"] == 18
    return web


@pytest.fixture
def web(scored, tmp_path) -> Path:
    """A copy that a test may damage, with the times of its files."""
    shutil.copytree(scored / "crawl", scored / "whole")
    shutil.copytree(scored / "run", scored / "decided")
    yield scored
    for name, kept in (("crawl", "whole"), ("run", "decided")):
        shutil.rmtree(scored / name)
        (scored / kept).rename(scored / name)


def lose(crawl: Path) -> None:
    """Deletes a shard, cuts one off within its image, and makes one no file."""
    deleted, truncated, unreadable = (crawl / name for name in LOST)
    deleted.unlink()
    os.truncate(truncated, 600)
    unreadable.unlink()
    unreadable.mkdir()


def losing(web: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Loses the shards once a stage begins, when they have been listed."""
    name = {"caption": "caption", "export": "export_shards"}[stage]
    begin: Callable = getattr(curate, name)

    def begun(*arguments):
        if (web / "crawl" / LOST[0]).exists():
            lose(web / "crawl")
        return begin(*arguments)

    monkeypatch.setattr(curate, name, begun)


def code_of(web: Path, command: str, max_failed_share: float) -> int:
    words = small_run.arguments(command, str(web), str(web / "run"))
    try:
        run.main([*words, "--set", f"max_failed_share={max_failed_share}"])
    except SystemExit as ended:
        return ended.code
    return 0


def failures_of(web: Path, stage: str) -> list[Failure]:
    tables = error_tables.tables(str(web / "run"), STAGE_TO_FOLDER[stage])
    names = sorted(tables.lot_names())
    return [row for name in names for row in from_table(tables.read(name), Failure)]


def expect_a_row_for_each(web: Path, stage: str) -> None:
    rows = failures_of(web, stage)
    assert sorted(Path(row.shard).name for row in rows) == list(LOST)
    assert {row.stage for row in rows} == {stage}
    assert [row.short_reason for row in sorted(rows, key=lambda row: row.shard)] == [
        "shard cannot be opened",
        "has changed since it was scored",
        "shard cannot be opened",
    ]


def manifest_of(web: Path) -> dict:
    return json.loads((web / "run" / "tfrecords" / "manifest.json").read_text())


def test_under_the_bound_three_lost_shards_are_three_rows_and_the_rest_is_done(
    web, monkeypatch, capsys
):
    losing(web, monkeypatch, "caption")
    assert code_of(web, "curate", max_failed_share=0.17) == 0
    said = capsys.readouterr().out
    assert "captions_failed 3" in said
    assert f"captions_written {N_LEFT}" in said
    assert "images_failed 3" in said
    assert f"samples_written {N_LEFT}" in said
    for stage in ("caption", "export"):
        expect_a_row_for_each(web, stage)
    found = manifest_of(web)
    assert (found["n_samples"], found["n_failed"]) == (N_LEFT, 3)
    assert (web / "run" / "report" / "index.html").exists()


@pytest.mark.parametrize("stage", ["caption", "export"])
def test_above_the_bound_the_stage_fails_with_the_same_rows(
    web, monkeypatch, capsys, stage
):
    if stage == "export":
        assert code_of(web, "caption", max_failed_share=0) == 0
    losing(web, monkeypatch, stage)
    assert code_of(web, stage, max_failed_share=0.16) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: max_failed_share=0.16: expected at most that share")
    expect_a_row_for_each(web, stage)
    assert not (web / "run" / "tfrecords" / "manifest.json").exists()
