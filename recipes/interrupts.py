"""Ctrl-C: one line that says what the same command goes on with, and exit code 130.

A program calls `begin` before its slow imports. From then on Ctrl-C ends it where it
stands, rather than raise KeyboardInterrupt, which libraries catch, log and turn into
other errors; a second Ctrl-C does not even wait for what is tidied up. All commands
write a file as a whole or not at all, so there is little to tidy.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT  # as shells have it
SCRIPTS = ("curate", "tips-train")  # what `pip install` calls programs
_SHOW_CURSOR = "\x1b[?25h\n"  # which a bar of progress hides

_before_end: list[Callable[[], object]] = []
_says: list[Callable[[], str]] = [
    lambda: "nothing was written, the same command begins anew"
]


def is_program(module: str) -> bool:
    """Whether a module of that `__name__` is what the process was started for."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return module == "__main__" or name in SCRIPTS


def begin(module: str) -> None:
    """From here on Ctrl-C ends the program that this module is, if it is one.

    Processes that it starts leave Ctrl-C to it.
    """
    if module == "__mp_main__":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif is_program(module):
        signal.signal(signal.SIGINT, _end)
        # A process of Python's removes what processes share, and would warn of it.
        sys.warnoptions.append("ignore:resource_tracker")


@contextlib.contextmanager
def tidied(tidy: Callable[[], object]) -> Iterator[None]:
    """Calls `tidy` if Ctrl-C ends the program inside the block."""
    _before_end.append(tidy)
    try:
        yield
    finally:
        _before_end.remove(tidy)


@contextlib.contextmanager
def saying(what_goes_on: Callable[[], str]) -> Iterator[None]:
    """Inside the block, this is what is said of the same command after Ctrl-C."""
    _says.append(what_goes_on)
    try:
        yield
    finally:
        _says.remove(what_goes_on)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if multiprocessing.parent_process() is None:
        line = "the same command goes on with what is there"
        for tidy in reversed(_before_end):
            with contextlib.suppress(OSError, ValueError):
                tidy()
        with contextlib.suppress(OSError, ValueError):
            line = _says[-1]()
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
        print(f"interrupted: {line}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
