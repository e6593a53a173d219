"""Where else a run's numbers go: TensorBoard, Weights & Biases, a class of your own.

A tracker is made as `CLASS(folder, first_step, config)`, from the workdir, the step
that the run starts after, and the configuration as plain values. `run.trackers` names
them.
"""

import importlib
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from recipes.user_code import UserCodeError, call
from recipes.validation import require
from trainer.config import TrainConfig
from trainer.config_files import to_dict
from trainer.distributed.processes import is_first


class TrackerError(ValueError):
    """A tracker that does not start."""


class Tracker(Protocol):
    """What takes the lines of `metrics.jsonl`."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes numbers of a step; a step may come again, with further ones."""

    def close(self) -> None:
        """Ends, at the end of the run."""


class TensorBoard:
    """Scalars in an event file of the workdir, written without TensorFlow."""

    def __init__(
        self, folder: pathlib.Path, first_step: int, config: Mapping[str, Any]
    ):
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._add(event_pb2.Event(file_version="brain.Event:2"))
        # Tells TensorBoard to forget later steps of a killed run.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=first_step + 1, session_log=start))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes one event."""
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in numbers.items()
        ]
        summary = summary_pb2.Summary(value=values)
        self._add(event_pb2.Event(step=step, summary=summary))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())


class WandB:
    """A run of Weights & Biases, with the workdir's name; a resumed run goes on in it.

    The package's environment variables, such as WANDB_PROJECT, WANDB_ENTITY and
    WANDB_MODE, say where it is kept. Its id is in the file `wandb_id` of the workdir.
    Numbers are drawn over `step`, of which a killed run may have some twice.
    """

    def __init__(
        self, folder: pathlib.Path, first_step: int, config: Mapping[str, Any]
    ):
        import wandb

        path = folder / "wandb_id"
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            id=path.read_text(),
            name=folder.absolute().name,
            dir=folder,
            config=dict(config),
            resume="allow",
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs one line."""
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


_NAMED = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WandB),
}


class Trackers:
    """All trackers of a run. One that fails is told of once, and left out from then on.

    In a run of several processes only the first has any.
    """

    def __init__(self, trackers: Mapping[str, Tracker] | None = None):
        self._trackers = dict(trackers or {})

    def write(self, line: Mapping[str, float]) -> None:
        """Passes on the numbers of a line, which has its `step`."""
        numbers = {name: value for name, value in line.items() if name != "step"}
        self._each("write", int(line["step"]), numbers)

    def close(self) -> None:
        """Ends all of them."""
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(getattr(tracker, method), *arguments)
            except UserCodeError as error:  # it must not cost the training
                del self._trackers[name]
                print(
                    f"warning: run.trackers: {name}: {error}; the run goes on without",
                    file=sys.stderr,
                    flush=True,
                )


def open_trackers(
    config: TrainConfig, folder: pathlib.Path, first_step: int
) -> Trackers:
    """Starts the trackers of `run.trackers`. Raises TrackerError if one does not."""
    if not is_first():
        return Trackers()
    started = {}
    for name in config.run.trackers:
        kind = find_tracker(name)
        try:
            started[name] = call(kind, folder, first_step, to_dict(config))
        except UserCodeError as error:
            raise TrackerError(f"run.trackers: {name}: {error}") from error
    return Trackers(started)


def check_trackers(names: Sequence[str]) -> None:
    """Raises ValueError, with one line for the user, unless all can be found."""
    require(len(set(names)) == len(names), f"run.trackers={names}", "names that differ")
    for name in names:
        find_tracker(name)


def find_tracker(name: str) -> Any:
    """Returns the class of a tracker. Raises ValueError if there is none."""
    package, kind = _NAMED.get(name, (name.partition(":")[0], None))
    try:
        module = call(importlib.import_module, package)
    except UserCodeError as error:
        expected = (
            f"the extra [{package}] to be installed"
            if kind
            else f"one of {', '.join(_NAMED)}, or MODULE:CLASS"
        )
        raise ValueError(f"run.trackers: {name}: {error}; expected {expected}") from (
            error
        )
    kind = kind or getattr(module, name.partition(":")[2], None)
    is_tracker = isinstance(kind, type) and {"write", "close"} <= set(dir(kind))
    if not is_tracker:
        raise ValueError(
            f"run.trackers: {name}: expected MODULE:CLASS of a tracker, with write and"
            " close"
        )
    return kind
