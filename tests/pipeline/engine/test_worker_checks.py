"""A worker elsewhere says in one line what it lacks of the launcher's."""

import dataclasses
import pathlib
import shutil

import pytest

from pipeline.config.curation import EncoderConfig
from pipeline.engine import worker_checks
from pipeline.engine.worker_checks import WorkerChecks, WorkerError
from pipeline.models.checkpoints import weights_digest
from pipeline.scoring.encoder_handler import EncoderHandler
from pipeline.scoring.stage import Score
from tests.support import tiny_checkpoints, tiny_run


@pytest.fixture(scope="module")
def needs(tmp_path_factory) -> WorkerChecks:
    """Those of a launcher on another machine."""
    folder = tiny_checkpoints.write_paligemma(tmp_path_factory.mktemp("checkpoint"))
    own = WorkerChecks.of(str(folder), weights_digest(folder))
    return dataclasses.replace(own, launcher=("elsewhere", 1))


def expect_error(check, expected: str) -> None:
    with pytest.raises(WorkerError, match=expected) as caught:
        check()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("worker ")


def test_a_worker_that_has_it_all_is_fit(needs):
    needs.at_start()
    needs.before_load()


def test_other_code_is_named(needs):
    other = dataclasses.replace(needs, code="0123")
    expect_error(other.at_start, "code='.+': expected the launcher's '0123'")


def test_a_checkpoint_that_is_not_there_is_named_at_the_start(needs, tmp_path):
    nowhere = dataclasses.replace(needs, checkpoint=str(tmp_path / "none"))
    expect_error(nowhere.at_start, "none': expected a folder")
    expect_error(nowhere.before_load, "none': expected a folder")


def test_other_weights_are_named(needs, tmp_path):
    folder = shutil.copytree(needs.checkpoint, tmp_path / "other")
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    other = dataclasses.replace(needs, checkpoint=str(folder))
    expect_error(other.before_load, f"digest '{needs.digest}', found '")


def test_a_model_without_weights_needs_none(needs):
    service = dataclasses.replace(needs, checkpoint="", is_folder=False)
    service.at_start()
    service.before_load()


@pytest.mark.parametrize(
    "module", ["pipeline/selection/rules.py", "recipes/settings.py"]
)
def test_the_digest_of_the_code_covers_every_package(module, tmp_path):
    root = pathlib.Path(worker_checks.__file__).parents[2]
    for package in ("pipeline", "recipes"):
        shutil.copytree(root / package, tmp_path / package)
    assert worker_checks.digest_code(tmp_path) == worker_checks.code_digest()
    with (tmp_path / module).open("a") as file:
        file.write("\n")
    assert worker_checks.digest_code(tmp_path) != worker_checks.code_digest()


def test_score_asks_when_a_worker_starts(tmp_path, monkeypatch):
    run = tiny_run.make_run(tmp_path, {"web": tiny_run.plain_rows(1)})
    monkeypatch.setattr(
        "pipeline.engine.worker_checks.this_process", lambda: ("launcher", 1)
    )
    step = Score(run, EncoderHandler(EncoderConfig("tiny")))._score_shard
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.engine.worker_checks.code_digest", lambda: "older")
    expect_error(step.setup, "code='older'")
