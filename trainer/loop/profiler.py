"""A trace of some steps of a run, on demand.

    touch WORKDIR/profile

The next `run.n_profiled_steps` steps are traced to `WORKDIR/profiles/STEP`, where STEP
is the first of them, and the file is removed. To look at it, with the package
tensorboard-plugin-profile: `tensorboard --logdir WORKDIR/profiles`.
"""

import pathlib
import types
from typing import Self

import jax

REQUEST = "profile"
TRACES = "profiles"


class Profiler:
    """Traces steps when asked to. A context; call `after_step` after every step.

    Only process 0 traces.
    """

    def __init__(self, workdir: pathlib.Path, n_steps: int):
        self._request = workdir / REQUEST
        self._traces = workdir / TRACES
        self._n_steps = n_steps
        self._last_step: int | None = None  # of the trace under way
        self._is_first_process = jax.process_index() == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if self._last_step is not None:
            self._stop()

    def after_step(self, step: int, metrics: object) -> None:
        """Starts a trace if one is requested, or ends it with this step.

        `metrics` are the step's results, which the end of a trace waits for.
        """
        if self._last_step is None:
            if self._is_first_process and self._request.exists():
                self._start(step + 1)
        elif step == self._last_step:
            jax.block_until_ready(metrics)
            self._stop()

    def _start(self, first_step: int) -> None:
        jax.profiler.start_trace(self._traces / str(first_step))
        self._last_step = first_step + self._n_steps - 1

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._last_step = None
        self._request.unlink(missing_ok=True)
