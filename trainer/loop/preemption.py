"""Ends a run in order on SIGTERM, which machines get before they are taken away."""

import signal
import types
from typing import Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Notes SIGTERM. A context; ask after every step.

    With several processes JAX itself listens, so that all of them stop at one step.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._is_alone = jax.process_count() == 1

    def is_asked(self, step: int) -> bool:
        """Whether the run is to stop after this step."""
        if self._is_alone:
            return self._is_asked
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> Self:
        if self._is_alone:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if self._is_alone:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self._is_asked = True
