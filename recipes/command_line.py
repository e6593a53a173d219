"""What all commands share: flags given once, one-line errors, readers that go away.

The exit codes: 0 done, 1 failed, 2 the command or what it names is wrong, 130 Ctrl-C.
"""

import argparse
import contextlib
import io
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn, TextIO

from recipes import interrupts

FAILED = 1  # the run failed
WRONG_USAGE = 2  # the command, the configuration or what they point to is wrong


def begin(module: str, make_parser: Callable[[], "Parser"] | None = None) -> None:
    """Prepares a program; call it with `__name__` before slow imports.

    With a parser, `--help` and wrong flags end the program here.
    """
    interrupts.begin(module)
    if interrupts.is_program(module) and sys.excepthook is not _excepthook:
        sys.stdout, sys.stderr = map(_lasting, (sys.stdout, sys.stderr))
        sys.excepthook = _excepthook
    if make_parser and interrupts.is_program(module):
        make_parser().parse_args()


class _Output(io.FileIO):
    """Standard output or error, which may lose its reader, as in `status | head -1`.

    A full disk is reported once: what is left in buffers is then dropped.
    """

    is_lost = False

    def write(self, data: Any, /) -> int:
        if self.is_lost:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.is_lost = True
            if isinstance(error, BrokenPipeError):
                return len(data)
            error.filename = "standard output"
            raise


def _lasting(stream: TextIO) -> TextIO:
    """Returns a stream that survives a lost reader and characters it cannot encode."""
    if stream is None:  # closed by the parent process
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints errors of file systems and memory as one line, and others in full."""
    if isinstance(error, OSError | MemoryError):
        _say(error)
    else:
        sys.__excepthook__(kind, error, trace)


class _StoreOnce(argparse.Action):
    """Stores the value of a flag, and refuses a second one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if self.dest in parser.stored:
            parser.error(f"{option_string} {values}: expected the flag once")
        parser.stored.add(self.dest)
        setattr(namespace, self.dest, values)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"error: {message}; see {self.prog} --help\n")


class Parser(OneLineParser):
    """A parser whose flags may be given once and may not be abbreviated.

    `script` is the name that `pip install` gives the program, if any.
    """

    stored: set[str]  # destinations of flags that this command has given

    def __init__(self, *, script: str = "", **options: Any):
        from pipeline.records import VERSION  # with NumPy, too slow for `begin`

        is_script = script != "" and pathlib.Path(sys.argv[0]).name == script
        own = {"prog": script} if is_script else {}
        super().__init__(**{"allow_abbrev": False} | options | own)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.add_argument("--version", action="version", version=VERSION)
        if is_script:
            import shtab  # only installed programs complete words

            shtab.add_argument_to(self)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        self.stored = set()
        return super().parse_known_args(*args, **options)


@contextlib.contextmanager
def exits(code: int, *errors: type[BaseException]) -> Iterator[None]:
    """Ends the program with `code` and one line on any of `errors`."""
    try:
        yield
    except errors as error:
        end(code, error)


def warn(lines: Iterable[str]) -> None:
    """Prints warnings, a line each, where errors go."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def end(code: int, error: BaseException) -> NoReturn:
    """Ends the program with one line."""
    _say(error)
    raise SystemExit(code) from error


def _say(error: BaseException) -> None:
    """Prints an error as one line; of a traceback in a message its last one."""
    text = str(error).strip()
    if isinstance(error, RuntimeError):
        text = text.rpartition("\n")[2]
    message = " ".join(text.split()) or type(error).__name__
    print(f"error: {message}", file=sys.stderr)
