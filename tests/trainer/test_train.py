"""The commands from end to end, on the tiny model."""

import contextlib
import json
import shutil

import pytest

from pipeline.records import VERSION
from tests.support import tiny_export
from tests.support.runs import assert_same, metric_lines, saved
from trainer import evaluate, train
from trainer.loop import checkpoints
from trainer.loop.metrics import TrainingLog


@pytest.fixture(scope="module")
def run_train(recipe, export):
    def run(workdir, *overrides, data=export, config=recipe):
        sets = [part for one in overrides for part in ("--set", one)]
        flags = ["--config", config, "--data", data, "--workdir", workdir, *sets]
        train.main([str(flag) for flag in flags])

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_train, evaluation_tar):
    """A finished run of 6 steps, checkpoints at 3 and 6, evaluated at both."""
    workdir = tmp_path_factory.mktemp("trained")
    run_train(workdir, f"run.evaluations.retrieval={evaluation_tar}")
    return workdir


def test_a_workdir_holds_everything_that_was_promised(trained):
    names = {path.name.partition(".tfevents")[0] for path in trained.iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "events.out",
        "metrics.jsonl",
        "tokenizer.model",
    }
    assert checkpoints.find_steps(trained / "checkpoints") == [0, 3, 6]
    lines = metric_lines(trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[5]["n_samples_seen"] == 48
    assert "retrieval/short/mean/text_to_image/recall@1" in lines[2]
    assert "retrieval/short/mean/text_to_image/recall@1" not in lines[3]


def test_a_finished_run_says_so_and_does_nothing(trained, run_train, capsys):
    before = sorted(
        (p, p.stat().st_mtime_ns) for p in trained.rglob("checkpoints/**/*")
    )
    run_train(trained)
    assert "already trained to step 6" in capsys.readouterr().out
    after = sorted((p, p.stat().st_mtime_ns) for p in trained.rglob("checkpoints/**/*"))
    assert before == after


@contextlib.contextmanager
def interrupted_at_step_5(monkeypatch):
    count = TrainingLog.count

    def interrupt(log, step, metrics, sample_ids):
        if step == 5:
            raise KeyboardInterrupt
        count(log, step, metrics, sample_ids)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLog, "count", interrupt)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_an_interrupted_run_goes_on_bit_for_bit(
    trained, run_train, tmp_path, monkeypatch
):
    with interrupted_at_step_5(monkeypatch):
        run_train(tmp_path)
    assert checkpoints.find_steps(tmp_path / "checkpoints") == [0, 3]
    run_train(tmp_path, "run.n_threads=3")
    assert_same(saved(tmp_path, 6), saved(trained, 6))
    numbers = [
        {k: v for k, v in line.items() if "retrieval" not in k}
        for line in metric_lines(trained)
    ]
    assert metric_lines(tmp_path) == numbers


@pytest.mark.slow
def test_a_run_with_all_parts_of_the_optimizer_resumes(
    run_train, tmp_path, monkeypatch
):
    settings = (
        "optimizer.optimizer=adafactor",
        "optimizer.frozen=['text/.*', '.*/embedding/.*']",
        "optimizer.clip_by_module=true",
        "optimizer.layer_decay=0.7",
        "optimizer.n_frozen_head_steps=2",
        "optimizer.skip_nonfinite=true",
        "run.n_checkpoints_kept=1",
        "run.n_steps_per_kept_checkpoint=3",
    )
    with interrupted_at_step_5(monkeypatch):
        run_train(tmp_path, *settings)
    run_train(tmp_path, *settings)
    assert checkpoints.find_steps(tmp_path / "checkpoints") == [0, 3, 6]
    before, after = (saved(tmp_path, step)["params"] for step in (0, 6))
    assert_same(before["text"], after["text"])
    with pytest.raises(AssertionError):
        assert_same(before["head"], after["head"])
    (line,) = (line for line in metric_lines(tmp_path) if line["step"] == 6)
    assert "gradient_norm_text" not in line
    assert line["gradient_norm_head"] > 0


@pytest.mark.slow
def test_a_run_is_traced_when_a_file_asks_for_it(run_train, tmp_path):
    (tmp_path / "profile").touch()
    run_train(tmp_path, "run.n_profiled_steps=2")
    assert not (tmp_path / "profile").exists()
    assert list(tmp_path.glob("profiles/2/plugins/profile/*/*.xplane.pb"))


def test_evaluation_prints_one_json_object(trained, evaluation_tar, capsys):
    flags = ["--data", str(evaluation_tar), "--task"]
    evaluate.main(["--checkpoint", str(trained), *flags, "retrieval"])
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["step"]) == ("retrieval", 6)
    assert result["version"] == VERSION
    assert result["detailed"]["n_texts"] == 24
    assert result["short"]["cls_1"].keys() == {"image_to_text", "text_to_image"}
    line = metric_lines(trained)[-1]
    assert result["short"]["mean"]["text_to_image"]["recall@5"] == pytest.approx(
        line["retrieval/short/mean/text_to_image/recall@5"]
    )


def test_the_untrained_model_can_be_evaluated_too(trained, evaluation_tar, capsys):
    task = ["--task", "zero_shot_classification", "--data", str(evaluation_tar)]
    results = []
    for flags in (
        ["--checkpoint", str(trained), "--step", "0"],
        ["--checkpoint", str(trained / "checkpoints" / "0")],
    ):
        evaluate.main([*flags, *task])
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert (results[0]["step"], results[0]["n_classes"]) == (0, 3)
    assert results[0]["cls_1"] == results[0]["cls_2"]  # both tokens start at zero


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--checkpoint": "nowhere"}, "config.json: No such file"),
        ({"--step": "5"}, "step 5: expected one of 0, 3, 6"),
        ({"--data": "nowhere"}, "nowhere: no file, expected tars"),
        ({"--task": "segmentation"}, "segmentation: expected one of"),
    ],
)
def test_a_wrong_evaluation_command_exits_with_2_and_one_line(
    trained, evaluation_tar, capsys, flags, message
):
    right = {"--checkpoint": trained, "--task": "retrieval", "--data": evaluation_tar}
    arguments = [str(part) for pair in (right | flags).items() for part in pair]
    assert_wrong(lambda: evaluate.main(arguments), message, capsys)


def assert_wrong(command, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command()
    output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert not output.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.text.vocab_size=3"], "no field 'vocab_size'"),
        (["model.text.vocabulary_size=65"], "vocabulary_size=65: expected 64"),
        (["data.granularity_weights.long=1"], "long, expected granularities"),
        (["data.batch_size=25"], "batch_size=25: expected at most 24"),
        (["data.tokenizer=none.model"], "none.model: expected a sentencepiece model"),
        (["run.evaluations.segmentation=x"], "segmentation: expected one of"),
        (["run.evaluations.retrieval=nowhere"], "nowhere: no file"),
        (
            ["optimizer.frozen=text"],
            "optimizer.frozen.0=text: expected a pattern of whole paths of parameters",
        ),
        (
            ["terms=[{'term': 'no.module:Term', 'weight': 1}]"],
            "terms[0].term=no.module:Term: No module named 'no'; expected MODULE:CLASS",
        ),
        (["compute.n_fsdp=3"], "compute.n_fsdp=3: expected a divisor of the number of"),
        (["compute.n_microbatches=3"], "n_microbatches=3: expected a divisor of data."),
    ],
)
def test_a_wrong_training_command_exits_with_2_before_any_work(
    tmp_path, run_train, capsys, overrides, message
):
    workdir = tmp_path / "new"
    assert_wrong(lambda: run_train(workdir, *overrides), message, capsys)
    assert not workdir.exists()


def test_another_configuration_in_a_workdir_exits_with_2(trained, run_train, capsys):
    def command():
        run_train(trained, "optimizer.learning_rate=1")

    assert_wrong(command, "optimizer.learning_rate=1.0: expected 0.003", capsys)


def test_data_that_is_not_there_exits_with_2(tmp_path, run_train, capsys):
    def command():
        run_train(tmp_path / "w", data=tmp_path / "nowhere")

    assert_wrong(command, "nowhere/manifest.json: No such file", capsys)


def test_shards_of_another_schema_exit_with_2(tmp_path, run_train, capsys):
    folder = tiny_export.write(tmp_path / "data", [tiny_export.sample(0)])
    tiny_export.write_manifest(folder, schema_version=99)

    def command():
        run_train(tmp_path / "work", data=folder)

    assert_wrong(command, "manifest.json: schema_version=99, expected ", capsys)
    assert not (tmp_path / "work").exists()


def test_going_on_with_another_model_exits_with_2(trained, run_train, capsys):
    def command():
        run_train(trained, "model.vision.n_layers=2")

    assert_wrong(command, "model.vision.n_layers=2: expected 1 as in", capsys)


def test_a_cut_checkpoint_exits_with_1_and_names_its_folder(
    trained, run_train, tmp_path, capsys
):
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    for path in (folder / "checkpoints" / "3" / "training").rglob("manifest.ocdbt"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SystemExit) as exit_info:
        run_train(folder)
    assert exit_info.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"error: {folder / 'checkpoints' / '3'}: ")
    assert lines[-1].endswith("remove the folder to go on from the one before")


def damaged_export(folder, broken, n=16):
    samples = [
        tiny_export.sample(i, **({"image": b"\xff\xd8\xff"} if i in broken else {}))
        for i in range(n)
    ]
    return tiny_export.write(folder, samples, 1)


def test_a_broken_record_is_skipped_counted_and_named_once(tmp_path, run_train, caplog):
    folder = damaged_export(tmp_path / "data", {5})
    run_train(tmp_path / "work", data=folder)
    counts = [x["n_records_skipped"] for x in metric_lines(tmp_path / "work")]
    assert counts[1] >= 1  # after the first epoch, of two steps
    assert counts == sorted(counts)
    assert counts[5] >= 3
    warnings = [text for text in caplog.messages if text.startswith("skipped record")]
    assert len(warnings) == 1
    assert "record 5 of " in warnings[0]


def test_nothing_but_broken_records_exits_with_1_and_names_one(
    tmp_path, run_train, capsys
):
    folder = damaged_export(tmp_path / "data", set(range(8)), n=8)
    with pytest.raises(SystemExit) as exit_info:
        run_train(tmp_path / "work", data=folder)
    assert exit_info.value.code == 1
    assert "error: record " in capsys.readouterr().err.splitlines()[-1]


def test_weights_of_sets_that_are_not_there_exit_with_2(tmp_path, run_train, capsys):
    def command():
        run_train(tmp_path / "work", "data.mixture.books=2.0")

    assert_wrong(command, "data.mixture: weights of books, expected", capsys)
