"""Recipes as files: loads what the `get_config()` of a Python file returns.

A recipe is a user's program. Anything wrong with it becomes a ValueError of one line
that says where.
"""

import contextlib
import os
import pathlib
import runpy
import sys
import traceback
from typing import Any, TypeVar

from recipes.import_hints import PACKAGES, import_hint
from recipes.user_code import UserCodeError, call
from recipes.validation import one_line

T = TypeVar("T")

_ROOT = pathlib.Path(__file__).parents[1]  # of the packages, with the recipes in them
_MAX_MESSAGE_CHARS = 300


def load(path: str | pathlib.Path, kind: type[T], folder: str) -> T:
    """Returns the configuration, a `kind`, that the recipe in a Python file makes.

    Recipes in `folder` come with this project and are found where it is installed.

    Raises:
      ValueError: one line that says what is wrong with the file, and where.
    """
    file = pathlib.Path(path)
    if not os.path.isfile(file) and file.is_relative_to(folder):
        file = _ROOT / path
    if not os.path.isfile(file):
        raise ValueError(f"--config {path}: expected a Python file with get_config()")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the command
            config = call(_result, str(file))
    except UserCodeError as error:
        message = _located(error.raised, str(file))
        raise ValueError(f"--config {path}: {message}") from error.raised
    if not isinstance(config, kind):
        found, expected = type(config).__name__, kind.__name__
        raise ValueError(
            f"--config {path}: get_config() gave {found}, expected {expected}"
        )
    return config


def _result(file: str) -> Any:
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise _NoRecipeError("expected a function get_config() in it")
    return get_config()


class _NoRecipeError(ValueError):
    """A file without `get_config()`."""


def _located(error: BaseException, file: str) -> str:
    """Returns what went wrong, after the line of the recipe where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    name, message = f"{type(error).__name__}: ", _message(error)
    if isinstance(error, SyntaxError) and error.filename == file:
        lines, message = [error.lineno], error.msg
    elif isinstance(error, _NoRecipeError) or _is_check(error, frames[-1].filename):
        name = ""
    if not lines:
        return one_line(name + message, _MAX_MESSAGE_CHARS)
    hint = import_hint(error, file, lines[-1] or 0)
    return f"line {lines[-1]}: " + one_line(name + message, _MAX_MESSAGE_CHARS) + hint


def _message(error: BaseException) -> str:
    try:
        return call(str, error)
    except UserCodeError:
        return "its message cannot be shown"


def _is_check(error: BaseException, raised_in: str) -> bool:
    """Whether one of our checks raised the error: its message needs no type name."""
    ours = tuple(str(_ROOT / package) + os.sep for package in PACKAGES)
    return type(error) is ValueError and raised_in.startswith(ours)
