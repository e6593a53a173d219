"""Servers that tests start: programs on a free port, which end with the test."""

import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
# Linux kills the program when the process that started it dies, however it dies.
_BOUND_TO_PARENT = (
    *(sys.executable, "-S", "-E", "-c"),
    "import ctypes, os, sys;"
    f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {_SIGKILL});"
    "os.execvp(sys.argv[1], sys.argv[1:])",
)


def free_port() -> int:
    """A port of this machine on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@dataclasses.dataclass
class ServerProcess:
    """A program that serves on a port; it can be stopped and started again.

    Attributes:
      log: the file that its output is appended to.
    """

    command: Sequence[str]
    port: int
    log: Path
    _process: subprocess.Popen | None = None

    def start(self) -> None:
        """Returns when the program listens.

        Raises:
          RuntimeError: with what it has printed, if it ends or never listens.
        """
        launcher = _BOUND_TO_PARENT if sys.platform == "linux" else ()
        with self.log.open("ab") as log:
            command = [*launcher, *self.command]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                output = self.log.read_text(errors="replace")[-2000:]
                name = self.command[0]
                raise RuntimeError(f"{name}: expected it to listen\n{output}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the program, so that nobody listens any more."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True
