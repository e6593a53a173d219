"""Threads that work ahead of the one that needs their results."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_BYTES_AHEAD = 256 << 20


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    n_ahead: int,
    n_bytes: Callable[[Item], int] = lambda item: 0,
    *,
    n_threads: int | None = None,
) -> Iterator[Result]:
    """`map(function, items)` in threads, for functions that release the lock.

    Results come in order; an exception is raised where its result would be. Memory has
    a bound: at most `n_ahead` items are read ahead of the result that is asked for,
    and fewer if they have more than 256 MiB together.

    Args:
      n_bytes: size of an item, such as an encoded image.
      n_threads: one a core unless it is given, as for functions that wait.
    """
    pending: collections.deque[tuple[futures.Future[Result], int]] = collections.deque()
    n_bytes_ahead = 0
    with futures.ThreadPoolExecutor(n_threads or os.cpu_count()) as executor:
        for item in items:
            size = n_bytes(item)
            pending.append((executor.submit(function, item), size))
            n_bytes_ahead += size
            while len(pending) > n_ahead or (
                pending and n_bytes_ahead > _MAX_BYTES_AHEAD
            ):
                future, size = pending.popleft()
                n_bytes_ahead -= size
                yield future.result()
        for future, _ in pending:
            yield future.result()
