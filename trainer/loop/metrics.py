"""Measurements of a run: to `metrics.jsonl`, to trackers and to the terminal."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import rich.console
import rich.progress
from jaxtyping import Array, Float, UInt8

from pipeline.records import VERSION
from pipeline.storage.file_errors import add_path
from trainer.loop.flops import Cost
from trainer.loop.trackers import Trackers
from trainer.step.optimizer import IS_SKIPPED


class NotFiniteError(ArithmeticError):
    """A measurement is infinite or not a number. The message names it and the step."""


class TrainingLog:
    """Counts every step, and writes lines of `metrics.jsonl` and of the display.

    Lines of steps after `first_step`, which a killed run left behind, are removed.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        first_step: int,
        n_steps: int,
        batch_size: int,
        cost: Cost,
        trackers: Trackers,
    ):
        self._lines = _Lines(path, first_step)
        last = self._lines.last
        # A run that resumes has written its last line at the checkpoint.
        self.n_records_skipped: int = last.get("n_records_skipped", 0)
        self._n_evaluations_failed: int = last.get("n_evaluations_failed", 0)
        self._n_steps_skipped: int = last.get("n_steps_skipped", 0)
        self._trackers = trackers
        self._display = _Display(first_step, n_steps)
        self._batch_size = batch_size
        self._cost = cost
        if cost.peak is not None:
            tflops_per_s = cost.peak.flops_per_s / 1e12
            self._display.say(f"MFU is of {tflops_per_s:g} TFLOP/s: {cost.peak.name}")
        self._is_compiled = False
        self._previous: _Step | None = None  # not looked at yet
        self._restart_clock(first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._lines.close()
        self._trackers.close()
        self._display.close()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Excludes the time inside from the speed."""
        start = time.perf_counter()
        yield
        self._started_s += time.perf_counter() - start

    def count(
        self,
        step: int,
        metrics: Mapping[str, Float[Array, ""]],
        sample_ids: UInt8[np.ndarray, "b 16"],
    ) -> None:
        """Counts a step, and waits for the one before it to end.

        So at most one step is under way while the next batch is fetched: if the loop
        waits for data, the device does. The first step compiles, and is excluded from
        the speed. Raises NotFiniteError, which names the samples, if the metrics of the
        step before are not finite; if the step skipped its update, says so.
        """
        if not self._is_compiled:
            jax.block_until_ready(metrics)
            self._restart_clock(step)
            self._is_compiled = True
        self._check_previous()
        self._previous = _Step(step, metrics, sample_ids)
        self._display.advance(step)

    def skip(self, n_records: int) -> None:
        """Counts records of this step's batch that were broken and replaced."""
        self.n_records_skipped += n_records

    def write(self, step: int, metrics: Mapping[str, Array | float]) -> None:
        """Writes the line of a step.

        Raises NotFiniteError if a metric is not finite. In the line of a step that
        skipped its update such metrics are left out.
        """
        self._check_previous()
        finite = {k: x for k, x in _round_values(metrics).items() if math.isfinite(x)}
        finite.pop(IS_SKIPPED, None)
        line = {**self._counts(step), **finite, **self._speed(step)}
        self._lines.add(line)
        self._trackers.write(line)
        self._display.show(line)
        self._restart_clock(step)

    def add(self, step: int, results: Mapping[str, float], n_failed: int) -> None:
        """Adds the results of evaluations to the line of a step, which is the last one.

        `n_failed` evaluations have no result.
        """
        self._n_evaluations_failed += n_failed
        found = _round_values(results)
        self._lines.add({**self._counts(step), **found})
        failed = {"n_evaluations_failed": self._n_evaluations_failed}
        self._trackers.write({"step": step, **(found or failed)})

    def _check_previous(self) -> None:
        """Waits for the last step, and looks at it, once."""
        if self._previous is None:
            return
        previous, self._previous = self._previous, None
        if wrong := previous.describe_not_finite():
            if not float(previous.metrics.get(IS_SKIPPED, 0)):
                raise NotFiniteError(wrong)
            self._n_steps_skipped += 1
            print(f"skipped {wrong}", file=sys.stderr, flush=True)

    def _counts(self, step: int) -> dict[str, float]:
        counts: dict[str, float] = {
            "step": step,
            "n_samples_seen": step * self._batch_size,
            "n_records_skipped": self.n_records_skipped,
        }
        if self._n_evaluations_failed:
            counts["n_evaluations_failed"] = self._n_evaluations_failed
        if self._n_steps_skipped:
            counts["n_steps_skipped"] = self._n_steps_skipped
        return counts

    def _speed(self, step: int) -> dict[str, float]:
        n_images = (step - self._started_step) * self._batch_size
        elapsed_s = time.perf_counter() - self._started_s
        if not n_images:
            return {}
        return {
            "images_per_s": round(n_images / elapsed_s, 1),
            "share_waiting_for_data": round(self._waited_s / elapsed_s, 4),
            **self._utilization(n_images / elapsed_s),
        }

    def _utilization(self, images_per_s: float) -> dict[str, float]:
        """Per device; no share of the peak if the peak is unknown."""
        cost = self._cost
        flops_per_s = images_per_s * cost.flops_per_image / cost.n_devices
        found = {"flops_per_s_per_device": float(f"{flops_per_s:.4g}")}
        if cost.peak is not None:
            found["mfu"] = float(f"{flops_per_s / cost.peak.flops_per_s:.4g}")
        return found

    def _restart_clock(self, step: int) -> None:
        self._started_step = step
        self._started_s = time.perf_counter()
        self._waited_s = 0.0


class _Step(NamedTuple):
    """A step whose metrics may not be computed yet."""

    number: int
    metrics: Mapping[str, Float[Array, ""]]
    sample_ids: UInt8[np.ndarray, "b 16"]

    def describe_not_finite(self) -> str:
        """Names the metrics that are not finite, and the samples; "" if all are."""
        numbers = jax.device_get(dict(self.metrics))
        wrong = [
            f"{name} is {x}" for name, x in numbers.items() if not math.isfinite(x)
        ]
        if not wrong:
            return ""
        ids = " ".join(bytes(row).hex() for row in self.sample_ids)
        return f"step {self.number}: {', '.join(wrong)}; samples {ids}"


class _Display:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, first_step: int, n_steps: int):
        console = rich.console.Console()
        self._console = console
        self._n_steps = n_steps
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=n_steps, completed=first_step)
        self._bar.start()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        self._console.print(text)

    def show(self, line: Mapping[str, float]) -> None:
        text = f"loss {line['loss']:.3f}" if "loss" in line else "skipped"
        if "images_per_s" in line:
            text += (
                f"  {line['images_per_s']:.0f} images/s"
                f"  {line['share_waiting_for_data']:.0%} waiting for data"
            )
        if "mfu" in line:
            text += f"  {line['mfu']:.0%} MFU"
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal:
            print(f"step {line['step']}/{self._n_steps}  {text}", flush=True)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """The lines of `metrics.jsonl`, one per step, in order.

    Lines after `last_step` are dropped, and so is one that was cut while it was
    written. A killed process leaves the last line in its old state or in its new one.
    """

    def __init__(self, path: pathlib.Path, last_step: int):
        lines = _read_lines(path)
        kept = [text for text, line in lines if line["step"] <= last_step]
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self.last: Mapping[str, Any] = json.loads(kept[-1]) if kept else {}
        self._file = path.open("r+b")
        n_bytes = len(kept[-1].encode()) if kept else 0
        self._start = self._file.seek(0, os.SEEK_END) - n_bytes

    def add(self, line: Mapping[str, float]) -> None:
        """Appends a line, or extends the last one if both are of the same step."""
        if line["step"] == self.last.get("step"):
            line = {**self.last, **line}
            self._file.seek(self._start)
        else:
            self._start = self._file.seek(0, os.SEEK_END)
        self.last = line
        with add_path(self._file.name):
            text = json.dumps({**line, "version": VERSION})
            self._file.write(text.encode() + b"\n")
            self._file.truncate()
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def find_line(path: pathlib.Path, step: int) -> Mapping[str, Any]:
    """Returns the measurements of a step; nothing if it has no line."""
    found = (line for _, line in _read_lines(path) if line["step"] == step)
    return next(found, {})


def _read_lines(path: pathlib.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Each complete line with its values. Raises ValueError if it is no JSON."""
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = []
    for number, text in enumerate(texts, start=1):
        if text.endswith("\n"):
            try:
                line = json.loads(text)
                _ = int(line["step"])
            except (KeyError, TypeError, ValueError) as error:
                expected = "expected a JSON object with a step"
                raise ValueError(f"{path}, line {number}: {expected}") from error
            lines.append((text, line))
    return lines


def _round_values(metrics: Mapping[str, Array | float]) -> dict[str, float]:
    return {name: float(f"{float(value):.7g}") for name, value in metrics.items()}
