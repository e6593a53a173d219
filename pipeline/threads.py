"""Threads that work ahead of the one that needs their results."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], n_ahead: int
) -> Iterator[Result]:
    """`map(function, items)` on all cores, for functions that release the lock.

    Results come in order. At most `n_ahead` items are read ahead of the result that is
    asked for, so memory has a bound; an exception is raised where its result would be.
    """
    pending: collections.deque[futures.Future[Result]] = collections.deque()
    with futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > n_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
