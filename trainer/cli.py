"""Command-line habits of the trainer: one line for an error, and its exit code."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline.records import VERSION

FAILED = 1  # the run failed
WRONG_USAGE = 2  # the command, the configuration or what they point to is wrong


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line.

    `script` is what `pip install` calls the program, if it has a name of its own.
    """

    def __init__(self, *, script: str = "", **options: Any):
        is_script = script != "" and pathlib.Path(sys.argv[0]).name == script
        super().__init__(**options | ({"prog": script} if is_script else {}))
        self.add_argument("--version", action="version", version=VERSION)
        if is_script:
            import shtab  # nobody else completes words

            shtab.add_argument_to(self)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"error: {message}; see {self.prog} --help\n")


@contextlib.contextmanager
def exits(code: int, *errors: type[BaseException]) -> Iterator[None]:
    """Ends the program with `code` and one line on any of `errors`."""
    try:
        yield
    except errors as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(code) from error
