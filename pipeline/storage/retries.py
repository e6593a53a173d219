"""Retries of file system calls whose errors may pass."""

import errno
import functools
import logging
import random
import time
import typing
from collections.abc import Callable, Iterator

Result = typing.TypeVar("Result")
P = typing.ParamSpec("P")

N_RETRIES = 4
DELAY_S = 0.5  # before the first of them, at most; each waits twice as long

# A full disk, missing rights or a missing file stay what they are.
_PASSING = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class PassingError(OSError):
    """An error that may not come again when the same call is made again."""


def retry(function: Callable[P, Result]) -> Callable[P, Result]:
    """Decorates a call that may safely be made twice: retries passing errors."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        for delay_s in _delays_s():
            try:
                return function(*args, **kwargs)
            except OSError as error:
                if not _may_pass(error):
                    raise
                logging.warning("%s; trying again in %.1f s", error, delay_s)
                time.sleep(delay_s)
        return function(*args, **kwargs)

    return call


def _delays_s() -> Iterator[float]:
    """Each twice as long as the one before, less a random half: writers spread out."""
    for number in range(N_RETRIES):
        yield DELAY_S * 2**number * random.uniform(0.5, 1)


def _may_pass(error: OSError) -> bool:
    """Beam raises errors of its own, which hold those of the file systems."""
    if isinstance(error, PassingError):
        return True
    held = getattr(error, "exception_details", None) or {}
    errors = (error, error.__context__, *held.values())
    return any(getattr(one, "errno", None) in _PASSING for one in errors)
