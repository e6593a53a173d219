"""Ctrl-C: one line that says what the same command goes on with, and exit code 130."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.support.runs import LIMIT_S, RECIPES, finish, metric_lines, start, with_set
from trainer.loop import checkpoints

# A place that a pattern would read otherwise.
ODD = "odd [1]{a,b} *? #%~"


def interrupted(process: subprocess.Popen[str]) -> str:
    """The one line of a process whose terminal was sent Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
    output, errors = finish(process, code=130)
    assert "Traceback" not in output + errors
    *_, line = errors.splitlines()
    return line


def wait_for(process: subprocess.Popen[str], folder: pathlib.Path, step: int) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while max(checkpoints.find_steps(folder / "checkpoints"), default=-1) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.fixture
def flags(recipe, export, tmp_path):
    """A run in an odd place, on shards in another one."""
    data = tmp_path / ODD / "tfrecords"
    data.parent.mkdir()
    data.symlink_to(export)
    sets = [*RECIPES["contrastive"], "run.n_steps_per_checkpoint=1"]
    return ["--config", recipe, "--data", data, *with_set(*sets)]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_training_says_from_which_step_it_goes_on(flags, tmp_path, n_workers):
    workdir = tmp_path / ODD / "workdir"
    arguments = [*flags, "--workdir", workdir, *with_set(f"run.n_workers={n_workers}")]
    process = start([*arguments, *with_set("n_steps=100000")])
    wait_for(process, workdir, 2)
    line = interrupted(process)
    step = max(checkpoints.find_steps(workdir / "checkpoints"))
    expected = f"the same command resumes after step {step}, the last checkpoint"
    assert line == f"interrupted: {expected}"


def test_a_program_that_only_begins_has_written_nothing(flags, tmp_path):
    process = start([*flags, "--workdir", tmp_path / "workdir"])
    time.sleep(2)  # it imports JAX
    line = interrupted(process)
    assert line == "interrupted: nothing was written, the same command starts over"
    assert not (tmp_path / "workdir").exists()


def test_all_commands_take_places_as_they_are(flags, tmp_path):
    workdir, exported = tmp_path / ODD / "workdir", tmp_path / ODD / "export *"
    neighbor = tmp_path / "odd 1a xx #%~"
    neighbor.mkdir()
    finish(start([*flags, "--workdir", workdir, *with_set("n_steps=3")]))
    assert [line["step"] for line in metric_lines(workdir)][-1] == 3
    export = ["--checkpoint", workdir, "--format", "scenic", "--output", exported]
    finish(start(export, module="trainer.export"))
    assert (exported / "README.md").exists()
    assert list(neighbor.iterdir()) == []
