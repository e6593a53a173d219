"""Two processes as one run, through the real command, on CPU devices."""

import json
import os
import signal
import socket
import time

import pytest

from tests.support.runs import (
    LIMIT_S,
    RECIPES,
    assert_close,
    finish,
    metric_lines,
    saved,
    start,
    with_set,
)
from trainer.distributed import processes
from trainer.loop import checkpoints


def start_both(arguments, n_devices=1, module="trainer.train"):
    """One run in two processes, which find each other by the environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            [*arguments, "--distributed"],
            module=module,
            n_devices=n_devices,
            environment={
                processes.ADDRESS: f"localhost:{port}",
                processes.COUNT: "2",
                processes.NUMBER: str(number),
            },
        )
        for number in range(2)
    ]


@pytest.fixture
def command(recipe, export, evaluation_tar):
    evaluation = with_set(f"run.evaluations.retrieval={evaluation_tar}")
    return ["--config", recipe, "--data", export, *evaluation]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "tipsv2"])
def test_two_processes_train_as_one(command, name, tmp_path):
    """With parameters cut over both, so that neither can read them alone."""
    alone, workdir = tmp_path / "alone", tmp_path / "both"
    command = [*command, *with_set(*RECIPES[name])]
    finish(start([*command, "--workdir", alone]))
    cut = with_set("compute.n_fsdp=2")
    for process in start_both([*command, "--workdir", workdir, *cut]):
        finish(process)
    assert_close(workdir, alone, 6)
    assert "retrieval/short/mean/text_to_image/recall@1" in metric_lines(workdir)[-1]
    assert metric_lines(workdir, "metrics-1.jsonl") == metric_lines(workdir)
    names = sorted(path.name.partition(".tfevents")[0] for path in workdir.iterdir())
    assert names == [
        "checkpoints",
        "config.json",
        "events.out",
        "metrics-1.jsonl",
        "metrics.jsonl",
        "tokenizer.model",
    ]


@pytest.mark.slow
def test_two_processes_measure_as_one(command, evaluation_tar, tmp_path):
    sets = with_set(*RECIPES["contrastive"])
    finish(start([*command, "--workdir", tmp_path, *sets]))
    flags = ["--checkpoint", tmp_path, "--task", "retrieval", "--data", evaluation_tar]
    alone, _ = finish(start(flags, module="trainer.evaluate"))
    first, second = start_both(flags, module="trainer.evaluate")
    outputs = [finish(process)[0] for process in (first, second)]
    assert json.loads(outputs[0]) == json.loads(alone)
    assert outputs[1] == ""


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_stopped(command, tmp_path):
    longer = ("n_steps=100000", "run.n_steps_per_checkpoint=100000")
    sets = with_set(*longer, *RECIPES["contrastive"])
    arguments = [*command, "--workdir", tmp_path, *sets]
    both = start_both(arguments)
    deadline = time.monotonic() + LIMIT_S
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)
    outputs = [finish(process)[0] for process in both]
    step = checkpoints.find_steps(tmp_path / "checkpoints")[-1]
    assert step > 0
    for output in outputs:
        assert output.endswith(f"asked to stop: saved step {step}\n")
    assert saved(tmp_path, step)["data"] == {"global_next_index": 8 * step}
    one = start(arguments)
    while metric_lines(tmp_path)[-1]["step"] <= step:
        assert one.poll() is None
        time.sleep(0.1)
    os.killpg(one.pid, signal.SIGKILL)
    one.communicate()
    assert metric_lines(tmp_path)[step]["step"] == step + 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({processes.COUNT: "two"}, "JAX_NUM_PROCESSES=two: expected a number"),
        (
            {processes.COUNT: "2"},
            "expected a TPU pod, Slurm, or JAX_COORD",
        ),
    ],
)
def test_processes_that_are_not_told_of_each_other_exit_with_2(
    command, tmp_path, environment, message
):
    arguments = [*command, "--workdir", tmp_path / "work", "--distributed"]
    _, errors = finish(start(arguments, environment=environment), code=2)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "work").exists()
