"""Evaluations of a run at its checkpoints. Their failure never costs training.

They run after the checkpoint is saved. A failure is printed on standard error and
counted in the metrics, and training goes on. Evaluations that the line of a step lacks
are repeated when the run resumes from that step.
"""

import math
import pathlib
import sys
import textwrap
from collections.abc import Iterable, Mapping

from recipes.user_code import UserCodeError, call
from trainer.config import TrainConfig, Weights
from trainer.evals.frozen_encoder import Encoder
from trainer.evals.run import run_tasks
from trainer.loop import metrics, workdir
from trainer.loop.metrics import TrainingLog
from trainer.step.state import State

_SHOWN = 300  # characters of a failure


class EvaluationError(ValueError):
    """Evaluations of a run failed."""


class Evaluations:
    """The evaluations of `run.evaluations`, with the parameters of a step."""

    def __init__(self, config: TrainConfig, encoder: Encoder):
        self._run = config.run
        self._encoder = encoder
        self._failures: list[str] = []

    def measure(
        self, step: int, state: State, log: TrainingLog, tasks: Iterable[str]
    ) -> None:
        """Adds the numbers of some tasks to the line of a step."""
        params = state["params"]
        if self._run.evaluation.weights is Weights.TEACHER:
            params = params | {"vision": state["teacher"]["vision"]}
        for task in tasks:
            found: Mapping[str, float] = {}
            try:
                found = call(self._measure, task, params)
            except UserCodeError as error:  # it must not cost the training
                line = _line(error.raised)
                self._fail(f"evaluation {task} of step {step} failed: {line}")
            log.add(step, found, n_failed=not found)

    def check(self) -> None:
        """Raises EvaluationError if any have failed."""
        if self._failures:
            n, last = len(self._failures), self._failures[-1]
            raise EvaluationError(
                f"{last}; {n} failed in all; training is done, and the same command"
                " tries those of the last step again"
            )

    def _measure(self, task: str, params: dict) -> Mapping[str, float]:
        asked = {task: self._run.evaluations[task]}
        found = run_tasks(asked, self._encoder, params, self._run.evaluation)
        for name, value in found.items():
            if not math.isfinite(value):
                raise EvaluationError(f"{name} is {value}")
        return found

    def _fail(self, message: str) -> None:
        self._failures.append(message)
        print(f"warning: {message}", file=sys.stderr, flush=True)


def missing_evaluations(
    folder: pathlib.Path, config: TrainConfig, step: int
) -> tuple[str, ...]:
    """Returns the tasks of `config` that a checkpoint's line of metrics lacks.

    With several processes all read the line of the first, and so agree.
    """
    if not config.is_checkpoint_due(step):
        return ()
    line = metrics.find_line(folder / workdir.METRICS, step)
    measured = {name.partition("/")[0] for name in line}
    return tuple(task for task in config.run.evaluations if task not in measured)


def _line(error: BaseException) -> str:
    found = " ".join(str(error).split())
    return textwrap.shorten(found, _SHOWN) or type(error).__name__
