"""`--set a.b=value`: one grammar of changes to a recipe, for every program.

The path names fields, items of tuples by number (`granularities.0.prompt`) and values
of dicts by key. The value is a Python literal, in which `true`, `false` and `null` mean
True, False and None. Text needs no quotes: what is no literal of the field's type is
taken as it stands, so paths, patterns and names are typed as they are. The items of a
tuple may be separated by commas alone (`en,de`), and a group of fields may be set as a
dict. `docs/settings.md` has examples.
"""

import ast
import collections.abc
import dataclasses
import re
import typing
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from recipes.plain_values import build, expect_known, is_group, members_of
from recipes.settings import type_hints
from recipes.validation import one_line, shown

T = TypeVar("T")

_MAX_CHARS = 80  # of an assignment in a message
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_BRACKETS = ("(", "[", "{")


@dataclasses.dataclass(frozen=True)
class _Assignment:
    """One `a.b=value` as it was typed."""

    path: tuple[str, ...]
    text: str  # of the value
    typed: str

    @classmethod
    def parse(cls, typed: str) -> "_Assignment":
        path, equals, text = typed.partition("=")
        names = tuple(name.strip() for name in path.split("."))
        if not equals or not all(names):
            raise ValueError(f"--set {one_line(typed, _MAX_CHARS)}: expected a.b=value")
        return cls(names, text, typed)

    def error(self, message: object) -> ValueError:
        return ValueError(f"--set {one_line(self.typed, _MAX_CHARS)}: {message}")


def override(config: T, assignments: Sequence[str]) -> T:
    """Returns a recipe, or a part of one, with all `a.b=value` applied at once.

    Checks run on the result, so fields that depend on each other may change together.

    >>> Crop = dataclasses.make_dataclass("Crop", [("size_px", int)], frozen=True)
    >>> override(Crop(size_px=224), ["size_px=98"])
    Crop(size_px=98)

    Raises:
      ValueError: on a field that is unknown, set twice or of another type.
    """
    parsed = [_Assignment.parse(typed) for typed in assignments]
    expect_once("--set", assignments)
    return _changed(config, type(config), parsed, ()) if parsed else config


def expect_once(flag: str, assignments: Sequence[str]) -> None:
    """Raises ValueError if a field is set twice, as by `a.b=1` and `a.b=2`.

    To set `a` as a whole sets `a.b`.
    """
    names = [assignment.partition("=")[0].strip() for assignment in assignments]
    for number, name in enumerate(names):
        for other in (*names[:number], *names[number + 1 :]):
            if f"{other}.".startswith(f"{name}."):
                raise ValueError(f"{flag} {assignments[number]}: expected {other} once")


def _changed(
    value: Any, hint: Any, assignments: Sequence[_Assignment], place: tuple[str, ...]
) -> Any:
    """A value with the assignments to it or to its parts; `place` is its own path."""
    if not assignments:
        return value
    first, depth = assignments[0], len(place)
    if len(first.path) == depth:
        try:
            return read_value(first.text, hint, place[-1])
        except ValueError as error:
            raise first.error(error) from error
    name_to_assignments: dict[str, list[_Assignment]] = {}
    for one in assignments:
        name_to_assignments.setdefault(one.path[depth], []).append(one)
    try:
        return _with_parts(value, hint, name_to_assignments, place)
    except _CheckError as error:  # of the parts together
        typed = {one.typed: one for one in assignments}
        if len(typed) == 1:
            raise first.error(error) from error
        raise ValueError(str(error)) from error


class _CheckError(Exception):
    """A check of a dataclass whose fields have changed."""


def _with_parts(
    value: Any,
    hint: Any,
    name_to_assignments: Mapping[str, list[_Assignment]],
    place: tuple[str, ...],
) -> Any:
    first = next(iter(name_to_assignments.values()))[0]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _with_fields(value, name_to_assignments, place)
    if isinstance(value, tuple):
        return _with_items(value, hint, name_to_assignments, place)
    if isinstance(value, Mapping):
        hints = [typing.get_args(m) for m in members_of(hint) if _is_mapping(m)]
        hint_of_item = hints[0][1] if hints else Any
        return dict(value) | {
            key: _changed(value.get(key), hint_of_item, mine, (*place, key))
            for key, mine in name_to_assignments.items()
        }
    name, what = one_line(first.path[len(place)], 40), ".".join(place)
    raise first.error(f"no field {name!r}, as {what}={shown(value)} has no fields")


def _with_fields(
    value: Any,
    name_to_assignments: Mapping[str, list[_Assignment]],
    place: tuple[str, ...],
) -> Any:
    kind: type = type(value)
    hints = type_hints(kind)
    known = [field.name for field in dataclasses.fields(value)]
    new = {}
    for name, mine in name_to_assignments.items():
        try:
            expect_known(name, known)
        except ValueError as error:
            raise mine[0].error(error) from error
        hint = hints.get(name, Any)
        new[name] = _changed(getattr(value, name), hint, mine, (*place, name))
    try:
        return dataclasses.replace(value, **new)
    except ValueError as error:
        raise _CheckError(str(error)) from error


def _with_items(
    items: tuple,
    hint: Any,
    name_to_assignments: Mapping[str, list[_Assignment]],
    place: tuple[str, ...],
) -> tuple:
    new = list(items)
    for name, mine in name_to_assignments.items():
        if not (name.isascii() and name.isdigit() and int(name[:9]) < len(items)):
            numbers = f"0 to {len(items) - 1}" if items else "none, as it is empty"
            message = f"index {one_line(name, 40)!r}: expected {numbers}"
            raise mine[0].error(message)
        index = int(name)
        hint_of_item = _item_hint(hint, index)
        new[index] = _changed(items[index], hint_of_item, mine, (*place, name))
    return tuple(new)


def _item_hint(hint: Any, index: int) -> Any:
    for member in members_of(hint):
        arguments = typing.get_args(member)
        if typing.get_origin(member) is tuple and arguments:
            return arguments[0 if ... in arguments else index]
    return Any


def read_value(text: str, hint: Any, name: str) -> Any:
    """Reads a value as it is typed after `=`, as the type that its field has.

    Args:
      hint: the annotation of the field.
      name: what errors call it.

    Raises:
      ValueError: on a value of another type.
    """
    errors = []
    for read in (_read_literal, _read_text, _read_items):
        try:
            return read(text, hint, name)
        except _OtherError:
            continue
        except ValueError as error:
            errors.append(error)
    members, has_brackets = members_of(hint), text.strip().startswith(_BRACKETS)
    if any(map(_has_function, members)) or (
        any(map(_is_code, members)) and not has_brackets
    ):
        raise ValueError("this field is set in a recipe, or through its own fields")
    if has_brackets and any(map(_has_parts, members)) and not _is_literal(text):
        raise ValueError(f"{name}={shown(text)}: expected {_literal_described(text)}")
    raise errors[0]


class _OtherError(ValueError):
    """A text that is not written in this way."""


def _read_literal(text: str, hint: Any, name: str) -> Any:
    return build(hint, _literal(text), name, is_typed=True)


def _read_text(text: str, hint: Any, name: str) -> Any:
    return build(hint, text, name, is_typed=True)


def _read_items(text: str, hint: Any, name: str) -> Any:
    """Reads `en,de`; in a field that takes one text, too, a comma is part of it."""
    is_tuple = any(typing.get_origin(m) is tuple for m in members_of(hint))
    if not is_tuple or str in members_of(hint) or text.strip().startswith(_BRACKETS):
        raise _OtherError
    parts = [part for part in text.split(",") if part.strip()]
    items = (read_value(one, _item_hint(hint, 0), name) for one in parts)
    return build(hint, tuple(items), name, is_typed=True)


def _literal(text: str) -> Any:
    """A Python literal, or one of the words; raises _OtherError if it is neither."""
    text = text.strip()
    if text.lower() in _WORDS and text in (text.lower(), text.title()):
        return _WORDS[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a text
            tree = ast.parse(text, mode="eval")
            if text.startswith(_BRACKETS):
                tree = ast.fix_missing_locations(_Words().visit(tree))
            return ast.literal_eval(tree)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise _OtherError from error


def _is_literal(text: str) -> bool:
    try:
        _literal(text)
    except _OtherError:
        return False
    return True


def _literal_described(text: str) -> str:
    """Shows how to write what begins with a bracket, with the first key of a dict."""
    text = text.strip()
    if text.startswith("{"):
        key = re.match(r"""\{\s*['"]?(\w{1,30})""", text)
        name = key[1] if key else "name"
        return f"a dict with texts in quotes, such as {{'{name}': 'a/b'}}"
    return "a list with texts in quotes, such as ['a/b', 'c']"


class _Words(ast.NodeTransformer):
    """Words inside brackets: `[en, de]`, `{short: 1}`."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.Constant(_WORDS.get(node.id, node.id))


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is collections.abc.Mapping


def _has_parts(hint: Any) -> bool:
    return is_group(hint) or _is_mapping(hint) or typing.get_origin(hint) is tuple


def _is_code(hint: Any) -> bool:
    """Whether a value is an object that only a recipe or a dict can make."""
    return is_group(hint) or _has_function(hint) or any(map(_is_code, _items(hint)))


def _has_function(hint: Any) -> bool:
    """Whether a value is or holds a function, which only a recipe can make."""
    is_function = typing.get_origin(hint) is collections.abc.Callable
    return is_function or any(map(_has_function, _items(hint)))


def _items(hint: Any) -> list[Any]:
    """The types that items of a tuple may have."""
    items = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return [member for item in items for member in members_of(item)]
