"""Recipes as plain values, such as JSON holds, and built from them again.

In: dataclasses of settings. Out: dicts, lists, numbers and texts; and back, with every
value checked against the annotation of its field.
"""

import collections.abc
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recipes.settings import as_type, described, type_hints
from recipes.validation import expect, one_line, shown

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

CLASS_KEY = "class"  # in a dict, the name of the dataclass that it is

_MAX_NAMES_CHARS = 150  # of a list of names in a message


def to_plain(config: "DataclassInstance") -> dict:
    """The fields of a dataclass as JSON holds them, without names of classes."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(
    value: Any,
    *,
    fields_of: Callable[[Any], Iterable[dataclasses.Field]] = dataclasses.fields,
) -> Any:
    """A dataclass as plain JSON values, with the name of its class.

    Raises:
      ValueError: on a value that JSON does not know, such as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in fields_of(value)}
        return {CLASS_KEY: type(value).__name__} | {
            name: to_json(item, fields_of=fields_of) for name, item in fields.items()
        }
    if isinstance(value, dict):
        return {str(k): to_json(v, fields_of=fields_of) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item, fields_of=fields_of) for item in value]
    is_plain = value is None or isinstance(value, (str, int, float))
    expect(is_plain, "recipe", value, "numbers, texts, tuples and dataclasses alone")
    return value


def build(
    hint: Any,
    value: Any,
    name: str,
    *,
    is_typed: bool = False,
    find_class: Callable[[str], type | None] = lambda _: None,
) -> Any:
    """Builds what a field of annotation `hint` holds from plain values.

    Args:
      name: what errors call it.
      is_typed: a person typed the value: whole numbers become floats where those are
        expected.
      find_class: finds dataclasses that annotations do not name, by `CLASS_KEY`.

    Raises:
      ValueError: on a name that is not known or a value of another type.
    """
    options: Any = {"is_typed": is_typed, "find_class": find_class}
    members = members_of(hint)
    if isinstance(value, Mapping) and (
        CLASS_KEY in value or any(map(is_group, members))
    ):
        return _build_group(members, value, name, options)
    if len(members) == 1:
        return _build_one(hint, value, name, options)
    for member in members:
        try:
            return build(member, value, name, **options)
        except ValueError:
            continue
    return as_type(hint, value, name)


def _build_one(hint: Any, value: Any, name: str, options: Mapping[str, Any]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_group(hint) and not isinstance(value, hint):
        raise ValueError(f"{name}={shown(value)}: expected {_group_described(hint)}")
    if origin is tuple and isinstance(value, tuple | list):
        items = arguments[:1] * len(value) if ... in arguments else arguments
        if len(items) == len(value):
            value = tuple(
                build(item, one, f"{name}[{i}]", **options)
                for i, (item, one) in enumerate(zip(items, value, strict=True))
            )
    elif origin is collections.abc.Mapping and isinstance(value, Mapping):
        value = {
            key: build(arguments[1], item, f"{name}.{key}", **options)
            for key, item in value.items()
        }
    elif options["is_typed"] and hint is float and type(value) is int:
        as_type(hint, value, name)  # which refuses what is too large for a float
        return float(value)
    return as_type(hint, value, name)


def _build_group(
    members: Iterable[Any], value: Mapping, name: str, options: Mapping[str, Any]
) -> Any:
    """Builds a dataclass, of the class that the dict or the annotation names."""
    groups = [member for member in members if is_group(member)]
    if CLASS_KEY in value:
        class_name = str(value[CLASS_KEY])
        same = [group for group in groups if group.__name__ == class_name]
        kind = same[0] if same else options["find_class"](class_name)
    else:
        kind = groups[0] if len(groups) == 1 else None
    if kind is None:
        names = " or ".join(group.__name__ for group in groups) or "a known one"
        raise ValueError(f"{name}={shown(value)}: expected {CLASS_KEY!r}: {names}")
    fields = {key: item for key, item in value.items() if key != CLASS_KEY}
    return build_dataclass(kind, fields, f"{name}." if name else "", **options)


def build_dataclass(
    kind: type, values: Mapping, prefix: str = "", **options: Any
) -> Any:
    """Builds a dataclass from its fields as plain values.

    Args:
      prefix: of names of fields in errors, such as `model.`.
      options: those of `build`.

    Raises:
      ValueError: on a field that is missing, unknown or of another type.
    """
    hints = type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        expect_known(name, fields, prefix)
    for name, field in fields.items():
        if name not in values and _is_required(field):
            hint = hints.get(name, Any)
            what = _group_described(hint) if is_group(hint) else described(hint)
            raise ValueError(f"{prefix}{name} is missing: expected {what}")
    built = {
        name: build(hints.get(name, Any), value, f"{prefix}{name}", **options)
        for name, value in values.items()
    }
    return kind(**built)


def expect_known(name: str, known: Iterable[str], prefix: str = "") -> None:
    """Raises ValueError unless `name` is in `known`; it says the nearest name."""
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name[:_MAX_NAMES_CHARS], known, n=1)
    nearest = f" (nearest: {near[0]})" if near else ""
    listed = one_line(", ".join(known), _MAX_NAMES_CHARS)
    shown_name = one_line(f"{prefix}{name}", 40)
    raise ValueError(f"no field {shown_name!r}{nearest}, expected one of {listed}")


def members_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union; the type itself if it is none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def is_group(hint: Any) -> bool:
    """Whether a type is a dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _group_described(kind: type) -> str:
    names = ", ".join(field.name for field in dataclasses.fields(kind))
    return f"a dict of {one_line(names, _MAX_NAMES_CHARS)}"


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
