"""Recipes of the pipeline: loaded from a file, changed by `--set`."""

import dataclasses
import types
import typing
from typing import Any, Literal

from pipeline.config.curation import CurationConfig
from recipes import recipe_file
from recipes.settings import described, type_hints
from recipes.validation import expect, one_line, shown


def load_config(path: str) -> CurationConfig:
    """The configuration that the recipe in a Python file returns.

    `curation_configs/NAME.py` is found where the package is installed, too.

    Raises:
      ValueError: one line that says what is wrong with the file.
    """
    return recipe_file.load(path, CurationConfig, "curation_configs")


def override(config: Any, assignment: str) -> Any:
    """Applies one `a.b=value` of the command line to a (nested) dataclass.

    Raises:
      ValueError: on a field that is not there or a value of another type.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set {one_line(assignment, 80)}: expected a.b=value")
    try:
        return _replace(config, path.split("."), text)
    except ValueError as error:
        raise ValueError(f"--set {one_line(assignment, 80)}: {error}") from error


def _replace(value: Any, path: list[str], text: str) -> Any:
    name, *rest = path
    if isinstance(value, tuple):
        return _replace_item(value, path, text)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(f"{shown(value)} has no field {name!r}")
    names = [field.name for field in dataclasses.fields(value)]
    if name not in names:
        expected = ", ".join(names)
        raise ValueError(f"no field {name!r}, expected one of {expected}")
    old = getattr(value, name)
    hint = type_hints(type(value))[name]
    new = _replace(old, rest, text) if rest else parse_value(text, hint)
    return dataclasses.replace(value, **{name: new})


def _replace_item(items: tuple, path: list[str], text: str) -> tuple:
    name, *rest = path
    if not name.isdigit() or int(name) >= len(items) or not rest:
        raise ValueError(f"index {name!r}: expected 0 to {len(items) - 1} and a field")
    index = int(name)
    return (*items[:index], _replace(items[index], rest, text), *items[index + 1 :])


def parse_value(text: str, hint: Any) -> Any:
    """Reads a text as the annotated type: a number, bool, text, Literal or tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "none" and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a in (int, float, str, bool)] or [None]
    if origin is tuple:
        return tuple(parse_value(t, arguments[0]) for t in text.split(",") if t)
    if origin is Literal:
        expect(text in arguments, "value", text, " or ".join(arguments))
        return text
    if hint is bool:
        expect(text in ("true", "false"), "value", text, "true or false")
        return text == "true"
    if hint not in (int, float, str):
        raise ValueError("this field is set in a recipe, or through its own fields")
    try:
        return hint(text)
    except ValueError as error:
        raise ValueError(f"value={shown(text)}: expected {described(hint)}") from error
