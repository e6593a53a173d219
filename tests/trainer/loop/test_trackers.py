"""Numbers arrive at TensorBoard, at Weights & Biases and at a class of one's own."""

import dataclasses
import importlib
import struct
import sys

import pytest
from tensorboard.compat.proto import event_pb2

from trainer.loop import trackers
from trainer.loop.trackers import (
    TrackerError,
    Trackers,
    check_trackers,
    open_trackers,
)

LINE = {"step": 5, "loss": 2.5, "n_samples_seen": 20}


def opened(tiny, folder, *names, first_step=4):
    run = dataclasses.replace(tiny.run, trackers=names)
    return open_trackers(dataclasses.replace(tiny, run=run), folder, first_step)


def test_tensorboard_finds_the_numbers(tmp_path, tiny):
    found = opened(tiny, tmp_path, "tensorboard")
    found.write(LINE)
    found.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, event = read_events(path.read_bytes())
    assert version.file_version == "brain.Event:2"
    assert start.step == 5
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert (event.step, values) == (5, {"loss": 2.5, "n_samples_seen": 20})


def read_events(data):
    while data:
        (length,) = struct.unpack_from("<Q", data)
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_weights_and_biases_has_one_run_over_a_restart(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first_step in (0, 5):
        found = opened(tiny, tmp_path, "wandb", first_step=first_step)
        found.write(LINE | {"step": first_step + 5})
        found.close()
    paths = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {path.stem for path in paths} == {
        f"run-{(tmp_path / 'wandb_id').read_text()}"
    }
    records = [record for path in paths for record in read_records(path.read_bytes())]
    logged = [
        {item.key or item.nested_key[0]: item.value_json for item in one.history.item}
        for one in records
        if one.WhichOneof("record_type") == "history"
    ]
    assert [(line["step"], line["loss"]) for line in logged] == [
        ("5", "2.5"),
        ("10", "2.5"),
    ]


def read_records(data):
    """Records of a log in blocks of 32 KiB, after a header of 7 bytes."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    position, whole = 7, b""
    while position < len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record.FromString(whole)
            whole = b""


MADE: list["Own"] = []


class Own:
    """Keeps what it is given, and fails at step 7."""

    def __init__(self, folder, first_step, config):
        if not config["n_steps"]:
            raise OSError("no network")
        self.lines = []
        MADE.append(self)

    def write(self, step, numbers):
        if step == 7:
            raise ConnectionError("gone")
        self.lines.append((step, dict(numbers)))

    def close(self):
        self.lines.append("closed")


OWN = f"{__name__}:Own"


def test_a_class_of_ones_own_has_the_lines_until_it_fails(tmp_path, tiny, capsys):
    found = opened(tiny, tmp_path, OWN, "tensorboard")
    for step in (5, 7, 9):
        found.write(LINE | {"step": step})
    found.close()
    numbers = {"loss": 2.5, "n_samples_seen": 20}
    assert MADE[-1].lines == [(5, numbers)]
    errors = capsys.readouterr().err
    assert errors == f"warning: run.trackers: {OWN}: gone; the run goes on without\n"
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert [event.step for event in read_events(path.read_bytes())][2:] == [5, 7, 9]


def test_a_tracker_that_does_not_start_is_named(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(trackers, "to_dict", lambda config: {"n_steps": 0})
    with pytest.raises(TrackerError, match=r"run\.trackers: .*:Own: no network"):
        opened(tiny, tmp_path, OWN)


def test_other_processes_have_none(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(trackers, "is_first", lambda: False)
    opened(tiny, tmp_path, "tensorboard").write(LINE)
    assert not list(tmp_path.iterdir())
    assert isinstance(opened(tiny, tmp_path, OWN), Trackers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlflow", "mlflow: .*; expected one of tensorboard, wandb, or MODULE:CLASS"),
        ("json:none", "run.trackers: json:none: expected MODULE:CLASS of a tracker"),
        ("", "expected one of tensorboard, wandb"),
    ],
)
def test_a_tracker_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        check_trackers([name])


def test_a_tracker_twice_is_refused():
    with pytest.raises(ValueError, match=r"run\.trackers=.*: expected names that dif"):
        check_trackers(["tensorboard", "tensorboard"])


@pytest.mark.parametrize("source", ["1 / 0", "def ("])
def test_a_module_that_fails_is_one_line(tmp_path, monkeypatch, source):
    (tmp_path / "failing_tracker.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"run\.trackers: failing_tracker:X: .*; exp"):
        check_trackers(["failing_tracker:X"])


def test_a_class_that_writes_nothing_is_no_tracker():
    with pytest.raises(ValueError, match="of a tracker, with write and close"):
        check_trackers(["json:JSONDecoder"])


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"expected the extra \[wandb\] to be inst"):
        check_trackers(["wandb"])
