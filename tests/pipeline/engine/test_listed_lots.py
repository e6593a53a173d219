"""A listing that shrank is told from a pattern that a user changed."""

import dataclasses
from pathlib import Path

import pytest

from pipeline.config.curation import CurationConfig, EncoderConfig, ImageTextSource
from pipeline.config.selection import SelectionConfig
from pipeline.engine import listed_lots, lot_plan
from pipeline.engine.lot_plan import LotPlan
from pipeline.engine.run_folder import RunFolder
from pipeline.sources.shards import list_marks

CONFIG = CurationConfig(EncoderConfig("null"), SelectionConfig(), shards_per_lot=2)


def listed(folder: Path, pattern: str = "*.tar") -> RunFolder:
    """A run over shards of a folder, without any look at checkpoints."""
    source = ImageTextSource("web", str(folder / pattern))
    config = dataclasses.replace(CONFIG, sources=(source,))
    root = str(folder / "run")
    found = {"pool": {source: list_marks(source)}, "evaluation": {}, "seeds": {}}
    plan, lots = lot_plan.plan_lots(LotPlan.read(root), found, config.shards_per_lot)
    return RunFolder(root, config, *lots.values(), {"null": ""}, plan=plan)


def expect_all(run: RunFolder) -> None:
    listed_lots.expect_all(run.config, run.plan, run.root, run.role_to_lots)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / f"{name}.tar").write_bytes(b"")
    expect_all(listed(tmp_path))  # before the first command
    listed(tmp_path).write_plan()
    return tmp_path


def test_a_listing_that_shrank_is_refused_and_what_is_gone_is_named(folder):
    (folder / "b.tar").unlink()
    expected = r"web: 1 shard of the run is not listed any more: .*/b\.tar; expected"
    with pytest.raises(ValueError, match=expected + ".* `remove --shards` takes it"):
        expect_all(listed(folder))
    (folder / "c.tar").unlink()
    with pytest.raises(
        ValueError, match=r"2 shards of the run are not listed any more"
    ):
        expect_all(listed(folder))


def test_a_listing_that_grew_and_shards_that_changed_are_fine(folder):
    (folder / "e.tar").write_bytes(b"")
    (folder / "a.tar").write_bytes(b"more")
    expect_all(listed(folder))


def test_another_pattern_is_a_decision_and_holds_from_then_on(folder):
    (folder / "b.tar").unlink()
    run = listed(folder, "[ac].tar")
    expect_all(run)
    run.write_plan()
    expect_all(listed(folder, "[ac].tar"))


def test_lots_of_the_last_command_need_no_listing(folder):
    run = listed(folder)
    (folder / "b.tar").unlink()
    assert listed_lots.lots_of(run.config, run.plan, run.root) == run.role_to_lots
    assert listed_lots.count(run.root) == len(run.all_lots)
