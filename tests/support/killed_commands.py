"""Commands of the pipeline as users start them, killed with all of their processes.

In: the words of a command. Out: how it ended, and which files it changed, in order.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CHANGES = Path(__file__).parent / "changes"
_LIMIT_S = 600


@dataclasses.dataclass(frozen=True)
class Change:
    """A path of a run folder that a command has renamed a file to, or removed."""

    event: str
    path: str
    thread: str
    file: int  # the inode that the path got
    time_s: float

    @property
    def is_write(self) -> bool:
        return self.event == "os.rename"


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that is over.

    Attributes:
      killed_before: the path that the kill was aimed at; "" of another kill or end.
    """

    code: int
    errors: str
    changes: tuple[Change, ...]
    killed_before: str = ""

    @property
    def is_killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Commands:
    """Starts commands on the run in a folder; logs and compiled programs lie beside."""

    output: Path

    def run(
        self, words: Sequence[str], *, kill_before: int = 0, kill_after_s: float = 0
    ) -> Ended:
        """Runs a command to its end, or kills it.

        Args:
          kill_before: the number of the change that it does not come to; 0 is none.
          kill_after_s: when it is killed from outside; 0 is never.
        """
        log = self.output.with_suffix(".changes")
        log.write_text("")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.run", *words],
            env=self._environment(log, kill_before),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=kill_after_s or _LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate()
        lines = log.read_text().splitlines()
        changes = [Change(*json.loads(line)) for line in lines]
        is_aimed = len(changes) == kill_before > 0
        aim = changes[-1].path if is_aimed else ""
        return Ended(process.returncode, errors, self._made(changes), aim)

    def _environment(self, log: Path, kill_before: int) -> dict[str, str]:
        cache = self.output.with_suffix(".cache")
        own = {
            "PYTHONPATH": f"{_CHANGES}{os.pathsep}{ROOT}",
            "CHANGES_OF": str(self.output),
            "CHANGES_LOG": str(log),
            "KILL_BEFORE": str(kill_before),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return os.environ | own

    def _made(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        """Without the last change of each thread if a kill has prevented it."""
        last = {change.thread: i for i, change in enumerate(changes)}
        return tuple(
            change
            for i, change in enumerate(changes)
            if i != last[change.thread] or _is_made(change)
        )


def _is_made(change: Change) -> bool:
    path = Path(change.path)
    if not change.is_write:
        return not path.exists()
    return path.exists() and path.stat().st_ino == change.file
