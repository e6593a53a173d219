"""Calls of code that users write: recipes, drop rules, evaluation tasks, classes."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


class UserCodeError(Exception):
    """A call that failed; `raised` is what the user's code raised."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(raised)
        self.raised = raised


def call(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Calls a user's function and returns its result.

    Raises:
      UserCodeError: if the function raises anything but KeyboardInterrupt.
    """
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # users may raise anything, SystemExit too
        raise UserCodeError(error) from error
