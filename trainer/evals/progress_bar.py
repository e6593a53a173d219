"""How far an evaluation is, on standard error."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.console
import rich.progress

T = TypeVar("T")


def shown(rows: Iterable[T], what: str, *, is_on: bool) -> Iterator[T]:
    """The same rows, counted for the user; nothing is written unless `is_on`."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description:28}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not is_on) as bar:
        yield from bar.track(rows, description=what)
