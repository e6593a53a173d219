"""Killed at any moment and started again, a run ends bit for bit as if it never was."""

import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from tests.support.runs import (
    LIMIT_S,
    RECIPES,
    assert_same,
    finish,
    metric_lines,
    saved,
    start,
    with_set,
)
from trainer.loop import checkpoints


@pytest.fixture
def command(recipe, export):
    """Makes a command with a checkpoint after every step: most kills hit a write."""

    def make(name, n_steps):
        sets = [*RECIPES[name], f"n_steps={n_steps}", "run.n_steps_per_checkpoint=1"]
        return ["--config", recipe, "--data", export, *with_set(*sets)]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "tips", "tipsv2"])
def test_a_killed_run_goes_on_bit_for_bit(command, name, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    flags = command(name, n_steps=12)
    finish(start([*flags, "--workdir", undisturbed]))
    arguments = [*flags, "--workdir", killed]
    assert kill_after(start(arguments), killed, step=4, delay_s=0.05) < 12
    finish(start([*arguments, *with_set("run.n_threads=3")]))
    assert_same_run(killed, undisturbed, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tips", "tipsv2"])
def test_a_run_killed_often_goes_on_bit_for_bit(command, name, tmp_path):
    """Each time with other loaders; the first kill is before the first step."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    flags = command(name, n_steps=60)
    finish(start([*flags, "--workdir", undisturbed]))
    rng = random.Random(0)
    step = -1
    for number in range(10):
        loaders = [f"run.n_workers={number % 3}", f"run.n_threads={1 + number % 4}"]
        process = start([*flags, "--workdir", killed, *with_set(*loaders)])
        step = kill_after(process, killed, step, delay_s=rng.uniform(0, 0.3))
        assert step < 60
    finish(start([*flags, "--workdir", killed]))
    assert_same_run(killed, undisturbed, 60)


def kill_after(
    process: subprocess.Popen[str], workdir: pathlib.Path, step: int, delay_s: float
) -> int:
    """Kills a run, with its loaders, some time after it has saved a step after `step`.

    Returns the last step that it has saved.
    """
    folder = workdir / "checkpoints"
    deadline = time.monotonic() + LIMIT_S
    while max(checkpoints.find_steps(folder), default=-1) <= step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return checkpoints.find_steps(folder)[-1]


def assert_same_run(ours: pathlib.Path, theirs: pathlib.Path, n_steps: int) -> None:
    assert_same(saved(ours, n_steps), saved(theirs, n_steps))
    lines = metric_lines(ours)
    assert lines == metric_lines(theirs)
    assert [line["step"] for line in lines] == list(range(1, n_steps + 1))
