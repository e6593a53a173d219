"""Ctrl-C: one line that says how the same command continues, and exit code 130.

A program calls `begin` before its slow imports. From then on Ctrl-C ends it at
once instead of raising KeyboardInterrupt, which libraries catch, log and turn into
other errors. A second Ctrl-C skips the cleanup. All commands write a file as a whole or
not at all, so there is little to clean up.
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
_SHOW_CURSOR = "\x1b[?25h\n"  # hidden by a progress bar

_before_end: list[Callable[[], object]] = []
_says: list[Callable[[], str]] = [
    lambda: "nothing was written, the same command starts over"
]


def is_program(module: str) -> bool:
    """Whether the process was started to run the module of that `__name__`."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return module == "__main__" or name in SCRIPTS


def begin(module: str) -> None:
    """Makes Ctrl-C end the program from here on, if this module is the program.

    Child processes ignore Ctrl-C and leave it to their parent.
    """
    if module == "__mp_main__":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif is_program(module):
        signal.signal(signal.SIGINT, _end)
        # Python's resource tracker cleans up shared objects, and would warn about them.
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
    """Sets what Ctrl-C says about continuing, inside the block."""
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
