"""Evaluations that fail cost no training; a finished run is left alone."""

import json
import pathlib
import shutil

import pytest

from tests.support.runs import assert_same, metric_lines, with_set
from trainer import evaluate, train
from trainer.config import Weights
from trainer.evals import in_training
from trainer.evals.in_training import _line
from trainer.evals.sets.samples import SampleError
from trainer.loop import checkpoints
from trainer.models.two_tower import abstract_params
from trainer.pretrained.trained_model import find_trained_model

TASK = "knn_classification"
SETTINGS = (
    "n_steps=4",
    "run.n_steps_per_checkpoint=2",
    "optimizer.n_warmup_steps=1",
    "self_supervision.distillation_weight=0",
    "self_supervision.patch_weight=0",
)


@pytest.fixture(scope="module")
def run_train(recipe, export, evaluation_tar):
    """Trains 4 steps with checkpoints at 2 and 4; returns the exit code."""

    def run(workdir, *overrides):
        names = {override.partition("=")[0] for override in overrides}
        own = [one for one in SETTINGS if one.partition("=")[0] not in names]
        sets = with_set(*own, *overrides)
        flags = ["--config", recipe, "--data", export, "--workdir", workdir, *sets]
        try:
            train.main([str(flag) for flag in flags])
        except SystemExit as ended:
            return ended.code
        except KeyboardInterrupt:
            return 130
        return 0

    return run


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(*errors):
    """In place of evaluations: raises one after the other, then gives a number."""
    left = list(errors)

    def run_all(evaluations, *_):
        (task,) = evaluations
        if left and (error := left.pop(0)) is not None:
            raise error
        return {f"{task}/accuracy": 0.5}

    return run_all


@pytest.mark.parametrize(
    "error",
    [
        SampleError("a photo that is none"),
        AttributeError("'NoneType' object has no attribute 'strip'"),
        FileNotFoundError(2, "No such file or directory", "set/a.tar"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 3 bytes"),
    ],
)
def test_a_failed_evaluation_is_told_and_counted_and_training_goes_on(
    tmp_path, run_train, evaluation_tar, monkeypatch, capsys, error
):
    monkeypatch.setattr(in_training, "run_tasks", failing(error))
    asked = f"run.evaluations.{TASK}={evaluation_tar}"
    assert run_train(tmp_path, asked) == 1
    assert checkpoints.find_steps(tmp_path / "checkpoints") == [0, 2, 4]
    lines = metric_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("n_evaluations_failed", 0) for line in lines] == [0, 1, 1, 1]
    assert lines[3][f"{TASK}/accuracy"] == 0.5
    warning, *_, last = capsys.readouterr().err.splitlines()
    assert warning == f"warning: evaluation {TASK} of step 2 failed: {_line(error)}"
    assert last.startswith(f"error: evaluation {TASK} of step 2 failed: ")
    before = contents(tmp_path)
    assert run_train(tmp_path, asked) == 0
    assert contents(tmp_path) == before


def test_the_checkpoint_is_complete_when_an_evaluation_begins(
    tmp_path, run_train, evaluation_tar, monkeypatch
):
    found = []

    def run_all(*_):
        found.append(checkpoints.find_steps(tmp_path / "checkpoints"))
        return {f"{TASK}/accuracy": 0.5}

    monkeypatch.setattr(in_training, "run_tasks", run_all)
    assert run_train(tmp_path, f"run.evaluations.{TASK}={evaluation_tar}") == 0
    assert found == [[0, 2], [0, 2, 4]]


def test_one_that_fails_leaves_the_others_their_numbers(
    tmp_path, run_train, evaluation_tar, monkeypatch
):
    monkeypatch.setattr(in_training, "run_tasks", failing(None, ValueError("x"), None))
    tasks = (TASK, "retrieval")
    assert run_train(
        tmp_path, *(f"run.evaluations.{x}={evaluation_tar}" for x in tasks)
    )
    _, second, _, fourth = metric_lines(tmp_path)
    assert {f"{x}/accuracy" for x in tasks} <= fourth.keys()
    assert f"{TASK}/accuracy" in second
    assert "retrieval/accuracy" not in second


def test_a_number_that_is_none_is_a_failure(
    tmp_path, run_train, evaluation_tar, monkeypatch, capsys
):
    name = f"{TASK}/accuracy"
    monkeypatch.setattr(in_training, "run_tasks", lambda *_: {name: float("nan")})
    assert run_train(tmp_path, f"run.evaluations.{TASK}={evaluation_tar}") == 1
    assert "accuracy is nan" in capsys.readouterr().err
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_repaired_set_gives_the_missing_numbers_and_exit_code_0(
    tmp_path, run_train, evaluation_tar
):
    good, data = evaluation_tar, tmp_path / "set" / "a.tar"
    data.parent.mkdir()
    whole = good.read_bytes()
    data.write_bytes(whole.replace(b"\xff\xd8\xff", b"<!D"))
    work, asked = tmp_path / "work", f"run.evaluations.{TASK}={data}"
    assert run_train(work, asked) == 1
    assert run_train(work, asked) == 1  # once more the same
    assert not any(key.startswith(TASK) for key in metric_lines(work)[-1])
    data.write_bytes(whole)
    assert run_train(work, asked) == 0
    lines = metric_lines(work)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert f"{TASK}/n_images" in lines[3]
    assert "loss" in lines[3]
    assert checkpoints.find_steps(work / "checkpoints") == [0, 2, 4]


def test_a_run_killed_while_it_evaluates_does_so_when_it_goes_on(
    tmp_path, run_train, evaluation_tar, monkeypatch
):
    asked = f"run.evaluations.{TASK}={evaluation_tar}"
    with monkeypatch.context() as killed:
        killed.setattr(in_training, "run_tasks", failing(KeyboardInterrupt()))
        assert run_train(tmp_path / "killed", asked) not in (0, None)
    assert checkpoints.find_steps(tmp_path / "killed" / "checkpoints") == [0, 2]
    assert run_train(tmp_path / "killed", asked) == 0
    assert run_train(tmp_path / "undisturbed", asked) == 0
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "undisturbed")


def test_a_set_that_is_not_there_at_the_start_exits_with_2(tmp_path, run_train):
    work = tmp_path / "work"
    assert run_train(work, f"run.evaluations.{TASK}={tmp_path / 'nowhere'}") == 2
    assert not work.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_train):
    folder = tmp_path_factory.mktemp("finished")
    assert run_train(folder) == 0
    return folder


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("compute.dtype=bfloat16", "compute.dtype='float32', not 'bfloat16'"),
        ("compute.remat=full", "compute.remat='none', not 'full'"),
        ("run.n_workers=1", "run.n_workers=0, not 1"),
        ("run.evaluations.retrieval=x", "run.evaluations.retrieval=None, not 'x'"),
    ],
)
def test_a_finished_run_is_left_alone_whatever_the_settings(
    finished, run_train, capsys, override, said
):
    before = contents(finished)
    assert run_train(finished, override) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert f"already trained to step 4; left as it is: {said}" in output
    assert contents(finished) == before


@pytest.mark.parametrize(
    "override", ["optimizer.learning_rate=1", "n_steps=8", "data.batch_size=4"]
)
def test_another_run_in_a_finished_workdir_is_refused(finished, run_train, override):
    before = contents(finished)
    assert run_train(finished, override) == 2
    assert contents(finished) == before


def test_a_run_that_goes_on_notes_what_changed(tmp_path, finished, run_train):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert run_train(tmp_path, "run.n_threads=2", "run.n_steps_per_log=2") == 0
    kept = json.loads((tmp_path / "config.json").read_text())
    changed = {"run.n_threads": [1, 2], "run.n_steps_per_log": [1, 2]}
    assert kept["changes"] == [{"after_step": 2, "fields": changed}]
    assert kept["config"]["run"]["n_threads"] == 2


def test_a_checkpoint_that_cannot_be_written_is_one_line(
    tmp_path, run_train, monkeypatch, capsys
):
    def full(*_, **__):
        raise ValueError(f"RESOURCE_EXHAUSTED: {'x' * 999}\n[os_error_code='28']")

    manager = checkpoints.ocp.CheckpointManager
    monkeypatch.setattr(manager, "save", full)
    assert run_train(tmp_path) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'checkpoints'}: RESOURCE_EXHAUSTED: ")
    assert len(line) < 600


def test_a_vocabulary_that_was_replaced_in_a_workdir_is_noticed(
    tmp_path, finished, run_train
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(copy.read_bytes() + b"\n")
    flags = ["--checkpoint", str(tmp_path), "--task", TASK, "--data", "x"]
    with pytest.raises(SystemExit) as ended:
        evaluate.main(flags)
    assert ended.value.code == 2


def test_metrics_that_are_no_json_are_named(tmp_path, finished, run_train, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    path: pathlib.Path = tmp_path / "metrics.jsonl"
    path.write_text("x\n" + path.read_text())
    assert run_train(tmp_path) != 0
    assert "metrics.jsonl, line 1: expected a JSON" in capsys.readouterr().err


def test_the_average_that_teaches_can_be_measured(
    tmp_path, run_train, evaluation_tar, capsys
):
    settings = (
        "self_supervision.patch_weight=1",
        "self_supervision.ema=full",
        "run.evaluation.weights=teacher",
        f"run.evaluations.retrieval={evaluation_tar}",
    )
    assert run_train(tmp_path, *settings) == 0
    capsys.readouterr()

    def measured(*flags):
        own = ["--checkpoint", tmp_path, "--task", "retrieval", *flags]
        evaluate.main([*map(str, own), "--data", str(evaluation_tar)])
        found = json.loads(capsys.readouterr().out)
        return found["short"]["mean"]["text_to_image"]

    line = metric_lines(tmp_path)[-1]
    name = "retrieval/short/mean/text_to_image/recall@5"
    assert measured()["recall@5"] == pytest.approx(line[name], rel=1e-6)
    weights = find_trained_model(tmp_path).with_weights(Weights.TEACHER)
    shapes = {"vision": abstract_params(weights.config.model)["vision"]}
    student = find_trained_model(tmp_path)
    with pytest.raises(AssertionError):
        assert_same(weights.params(shapes), student.params(shapes))


def test_a_teacher_without_an_own_encoder_cannot_be_measured(tmp_path, run_train):
    assert run_train(tmp_path / "run", "run.evaluation.weights=teacher") == 2
    assert not (tmp_path / "run").exists()
