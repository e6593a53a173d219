import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.records import VERSION
from trainer.loop.flops import Cost, Peak
from trainer.loop.metrics import NotFiniteError, TrainingLog
from trainer.loop.trackers import Trackers
from trainer.step.optimizer import IS_SKIPPED

IDS = np.arange(32, dtype=np.uint8).reshape(2, 16)


def make_log(folder, first_step=0, peak=None):
    return TrainingLog(
        folder / "metrics.jsonl",
        first_step=first_step,
        n_steps=9,
        batch_size=4,
        cost=Cost(flops_per_image=600, n_devices=2, peak=peak),
        trackers=Trackers(),
    )


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_step_samples_metrics_and_speed(tmp_path):
    with make_log(tmp_path) as log:
        for step in (1, 2, 3):
            with log.waiting():
                pass
            log.count(step, {"loss": jnp.float32(step)}, IDS)
        log.write(3, {"loss": jnp.float32(3), "retrieval/recall@1": 0.123456789})
    (line,) = lines(tmp_path)
    assert line.pop("images_per_s") > 0
    assert line.pop("flops_per_s_per_device") > 0
    assert 0 <= line.pop("share_waiting_for_data") <= 1
    assert line == {
        "step": 3,
        "n_samples_seen": 12,
        "n_records_skipped": 0,
        "loss": 3.0,
        "retrieval/recall@1": 0.1234568,
        "version": VERSION,
    }


def test_skipped_records_add_up_over_lines_and_restarts(tmp_path):
    for first_step in (0, 2):
        with make_log(tmp_path, first_step) as log:
            for step in (first_step + 1, first_step + 2):
                log.skip(step)
                log.write(step, {"loss": 0.0})
            log.skip(100)  # after the last line: to be done again
    assert [line["n_records_skipped"] for line in lines(tmp_path)] == [1, 3, 6, 10]


def test_pauses_and_the_first_step_do_not_count_as_training(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("trainer.loop.metrics.time.perf_counter", lambda: clock[0])

    def spend(seconds):
        clock[0] += seconds

    with make_log(tmp_path) as log:
        spend(50)
        log.count(1, {}, IDS)
        for step in (2, 3):
            with log.waiting():
                spend(1)
            spend(3)
            log.count(step, {}, IDS)
        with log.pausing():
            spend(70)
        log.write(3, {"loss": 0.0})
    (line,) = lines(tmp_path)
    assert (line["images_per_s"], line["share_waiting_for_data"]) == (1.0, 0.25)


def test_operations_are_of_one_device_and_mfu_is_their_share_of_a_named_peak(
    tmp_path, monkeypatch, capsys
):
    clock = [100.0]
    monkeypatch.setattr("trainer.loop.metrics.time.perf_counter", lambda: clock[0])
    with make_log(tmp_path, peak=Peak("toy, bfloat16", 5e3)) as log:
        clock[0] += 2
        log.write(1, {"loss": 0.0})
    (line,) = lines(tmp_path)
    assert line["images_per_s"] == 2
    assert line["flops_per_s_per_device"] == 600
    assert line["mfu"] == 0.12
    said, shown = capsys.readouterr().out.splitlines()
    assert said == "MFU is of 5e-09 TFLOP/s: toy, bfloat16"
    assert shown.endswith("  2 images/s  0% waiting for data  12% MFU")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_stops_the_run_and_names_the_samples(tmp_path, value):
    metrics = {"loss": jnp.float32(1), "patch": jnp.float32(value)}
    ids = re.escape(" ".join(bytes(row).hex() for row in IDS))
    message = rf"step 7: patch is (nan|inf); samples {ids}"
    with make_log(tmp_path) as log:
        log.count(7, metrics, IDS)
        with pytest.raises(NotFiniteError, match=message):
            log.write(7, metrics)
    with make_log(tmp_path) as log:
        log.count(7, metrics, IDS)
        with pytest.raises(NotFiniteError, match=message):  # though no line is due
            log.count(8, {"loss": jnp.float32(1)}, IDS)
    assert lines(tmp_path) == []


def test_steps_that_skip_their_update_are_counted_and_named(tmp_path, capsys):
    nothing = {"loss": jnp.float32("nan"), "other": jnp.float32(2)}
    skipped = nothing | {IS_SKIPPED: jnp.float32(1)}
    fine = {"loss": jnp.float32(1), IS_SKIPPED: jnp.float32(0)}
    for first_step in (0, 3):
        with make_log(tmp_path, first_step) as log:
            for number, metrics in enumerate((skipped, fine, skipped), first_step + 1):
                log.count(number, metrics, IDS)
                log.write(number, metrics)
    found = lines(tmp_path)
    assert [line["n_steps_skipped"] for line in found] == [1, 1, 2, 3, 3, 4]
    assert ["loss" in line for line in found] == [False, True, False] * 2
    assert not any(IS_SKIPPED in line for line in found)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0].startswith("skipped step 1: loss is nan; samples 0001")
    with make_log(tmp_path, 6) as log:  # not skipped: the run stops
        log.count(7, nothing | {IS_SKIPPED: jnp.float32(0)}, IDS)
        with pytest.raises(NotFiniteError):
            log.count(8, fine, IDS)


def test_going_on_removes_later_lines_and_a_cut_one(tmp_path):
    with make_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 0.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with make_log(tmp_path, first_step=2) as log:
        log.write(3, {"loss": 1.0})
    assert [(x["step"], x["loss"]) for x in lines(tmp_path)] == [(1, 0), (2, 0), (3, 1)]


def test_without_a_terminal_there_is_a_plain_line(tmp_path, capsys):
    with make_log(tmp_path) as log:
        log.write(3, {"loss": 2.5})
    pattern = r"step 3/9  loss 2\.500  \d+ images/s  0% waiting for data\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)
