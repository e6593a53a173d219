"""Shows how far a stage is, from the files that are there: any runner will do."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

_POLL_S = 1.0
_LINE_S = 10.0


@contextlib.contextmanager
def watch(name: str, n_total: int, count_done: Callable[[], int]) -> Iterator[None]:
    """Shows `name` and how many of `n_total` are done until the block ends.

    A bar on a terminal; elsewhere a line now and then. Tables of other source shards,
    which lie in the same folders, count up to `n_total` only.
    """
    is_over = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines
    arguments = (name, n_total, lambda: min(count_done(), n_total), is_over)
    thread = threading.Thread(target=show, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _show_bar(
    name: str, n_total: int, count_done: Callable[[], int], is_over: threading.Event
) -> None:
    columns = (
        rich.progress.TextColumn("{task.description:8}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=n_total)
        while not is_over.wait(_POLL_S):
            bar.update(task, completed=count_done())
        bar.update(task, completed=count_done())


def _show_lines(
    name: str, n_total: int, count_done: Callable[[], int], is_over: threading.Event
) -> None:
    start = time.monotonic()
    while not is_over.wait(_LINE_S):
        elapsed_s = time.monotonic() - start
        line = f"{name}: {count_done()} of {n_total} after {elapsed_s:.0f} s"
        print(line, file=sys.stderr, flush=True)
