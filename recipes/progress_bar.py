"""Shows the progress of some work: a live bar on a terminal, lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from recipes import interrupts

Row = TypeVar("Row")

_POLL_S = 1.0
_LINE_S = 10.0
_STOP_S = 2.0
_REST = 20  # times as long as a look takes, which of a large run is a second


class Shown(NamedTuple):
    """What a display says now."""

    n_done: int
    n_total: int | None  # None if it is not known
    line: str


@contextlib.contextmanager
def watch(name: str, n_total: int, count_done: Callable[[], int]) -> Iterator[None]:
    """Shows `name` and how many of `n_total` are done until the block ends."""
    start_s = time.monotonic()

    def look() -> Shown:
        n_done, elapsed_s = count_done(), time.monotonic() - start_s
        line = f"{name}: {n_done} of {n_total} after {elapsed_s:.0f} s"
        return Shown(n_done, n_total, line)

    with display(look):
        yield


def count(rows: Iterable[Row], name: str) -> Iterator[Row]:
    """Yields the same rows, and shows how many there were so far."""
    n_done, start_s = 0, time.monotonic()

    def look() -> Shown:
        elapsed_s = time.monotonic() - start_s
        return Shown(n_done, None, f"{name}: {n_done} after {elapsed_s:.0f} s")

    with display(look):
        for row in rows:
            n_done += 1
            yield row


@contextlib.contextmanager
def display(look: Callable[[], Shown]) -> Iterator[None]:
    """Polls `look` in a thread and shows its result until the block ends.

    A bar on a terminal, drawn every second; elsewhere a line every ten seconds. Looks
    that take long are further apart: they take a twentieth of the time at most.
    """
    is_over = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    thread = threading.Thread(target=show, args=(look, is_over), daemon=True)
    thread.start()

    def stop() -> None:
        is_over.set()
        thread.join(_STOP_S)  # a bar hides the cursor until it ends

    with interrupts.tidied(stop):
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _show_bar(look: Callable[[], Shown], is_over: threading.Event) -> None:
    # Commands that only look draw no bar, and do without it.
    import rich.console
    import rich.progress

    columns = (
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("")
        is_last = False
        while True:
            start_s = time.monotonic()
            now = look()
            took_s = time.monotonic() - start_s
            total = None if now.n_total is None else max(1, now.n_total)
            bar.update(task, total=total, completed=now.n_done, description=now.line)
            if is_last:
                return
            is_last = is_over.wait(max(_POLL_S, _REST * took_s))


def _show_lines(look: Callable[[], Shown], is_over: threading.Event) -> None:
    took_s = 0.0
    while not is_over.wait(max(_LINE_S, _REST * took_s)):
        start_s = time.monotonic()
        print(look().line, file=sys.stderr, flush=True)
        took_s = time.monotonic() - start_s
