"""Settings: dataclasses of a recipe whose types are checked before their ranges.

A str is a sequence of letters, True is 1 and NaN is a float: a value of the wrong type
often works, and means something else. So each value must have the type of its field.
NumPy numbers become Python numbers, lists become tuples, and values of an enum become
its members; anything else is a ValueError that names field, value and expectation.
"""

import collections.abc
import dataclasses
import difflib
import enum
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from recipes.validation import expect, one_line, shown


class Settings:
    """Base class of the frozen dataclasses in recipes.

    Types are checked first, then ranges in `__post_init__`.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if check_ranges := cls.__dict__.get("__post_init__"):
            # mypy knows no methods that are replaced.
            cls.__post_init__ = _after_types(check_ranges)  # type: ignore[assignment]

    def __new__(cls, *_: Any, **named: Any) -> typing.Self:
        # Every subclass is a dataclass, which mypy cannot know of this one.
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in named:
            if name not in known:
                expected = difflib.get_close_matches(name, known) or known
                raise TypeError(
                    f"{cls.__name__} got an unexpected keyword argument {name!r},"
                    f" expected {' or '.join(expected)}"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_types(self)


def _after_types(check_ranges: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(check_ranges)
    def check(self: Any) -> None:
        check_types(self)
        check_ranges(self)

    return check


def check_types(config: Any) -> None:
    """Gives the fields of a dataclass the types that they are annotated with.

    Raises:
      ValueError: on a value of another type.
    """
    kind: type = type(config)
    for name, hint in type_hints(kind).items():
        value = getattr(config, name)
        typed = as_type(hint, value, name)
        if typed is not value:
            object.__setattr__(config, name, typed)  # frozen, but still being made


@functools.cache
def type_hints(kind: type) -> Mapping[str, Any]:
    """Maps each field to its type; {} if an annotation names something unknown."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # annotations as texts, in a recipe
        return {}
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def as_type(hint: Any, value: Any, name: str) -> Any:
    """Converts a value to an annotated type, or raises ValueError.

    `name` is what the error calls it. A type that is not known here takes any value.
    """
    value = value.item() if isinstance(value, np.generic) else value
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _as_one_of(hint, value, name)
    if origin is Literal:
        expected = " or ".join(map(repr, arguments))
        expect(any(_is_same(value, a) for a in arguments), name, value, expected)
        return value
    if origin is tuple:
        return _as_tuple(arguments, value, name)
    if origin is collections.abc.Mapping:
        expect(isinstance(value, Mapping), name, value, described(hint))
        key, item = arguments
        return {
            as_type(key, k, f"a key of {name}"): as_type(item, v, f"{name}[{k!r}]")
            for k, v in value.items()
        }
    if isinstance(origin, enum.EnumType):
        members = typing.cast(Iterable[enum.Enum], origin)
        value = next((one for one in members if _is_same(value, one.value)), value)
    is_known = isinstance(origin, type) or origin is collections.abc.Callable
    expect(not is_known or _is(origin, value), name, value, _expected(hint, value))
    return value


def _as_one_of(hint: Any, value: Any, name: str) -> Any:
    members = typing.get_args(hint)
    if value is None and type(None) in members:
        return None
    for member in members:
        try:
            return as_type(member, value, name)
        except ValueError as error:
            if len(members) == 2 and type(None) in members:
                raise ValueError(f"{error} or None") from error
    raise ValueError(f"{name}={shown(value)}: expected {_expected(hint, value)}")


def _as_tuple(items: tuple, value: Any, name: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise ValueError(f"{name}={shown(value)}: expected {_a_tuple(items, value)}")
    if items[-1:] == (...,):
        items = items[:1] * len(value)
    expect(len(items) == len(value), name, value, f"{len(items)} values")
    names = [f"{name}[{i}]" for i in range(len(value))]
    return tuple(map(as_type, items, value, names))


def _a_tuple(items: tuple, value: Any) -> str:
    """Shows how to write a tuple, for a value that may be one of its items."""
    try:
        one = as_type(items[0], value, "")
    except ValueError:
        return f"a tuple of {described(items[0])}"
    if dataclasses.is_dataclass(one):
        text = f"{type(one).__name__}(...)"
    else:
        text = one_line(f'"{one}"' if isinstance(one, str) else repr(one), 40)
    return f"a tuple such as ({text},)" if ... in items else f"({text}, {text})"


def _is_same(value: Any, other: Any) -> bool:
    return isinstance(value, type(other)) and value == other


def _is(kind: Any, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    if kind is collections.abc.Callable:
        return callable(value) and not isinstance(value, type)
    try:
        return isinstance(value, kind)
    except TypeError:  # only an annotation, such as Any
        return True


def _expected(hint: Any, value: Any) -> str:
    if isinstance(value, type):
        return f"{described(hint)}, made by calling {value.__name__}(...)"
    return described(hint)


_NAMES = {
    int: "int, a whole number",
    float: "float, a finite number",
    str: "str, a text in quotes",
    bool: "True or False",
    type(None): "None",
}


def described(hint: Any) -> str:
    """Describes an annotated type in words."""
    if hint in _NAMES:
        return _NAMES[hint]
    if isinstance(hint, enum.EnumType):
        return f"one of {', '.join(hint)}"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(described, arguments))
    if origin is tuple:
        return f"a tuple of {described(arguments[0])}"
    if origin is collections.abc.Mapping:
        names = (a.__name__ if a in _NAMES else described(a) for a in arguments)
        return f"a dict of {' to '.join(names)}"
    if origin is collections.abc.Callable:
        return "a function of one pair, as an instance"
    return f"{hint.__name__}(...)" if isinstance(hint, type) else str(hint)
