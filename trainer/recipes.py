"""Configurations as files: read, changed from the command line, kept as JSON.

A recipe is a Python file with `get_config() -> TrainConfig`; `--set a.b=value` changes
single fields. The resolved configuration is kept in the workdir as JSON, from which
`from_dict` builds it again. Errors are `ValueError`s that name the field.
"""

import ast
import dataclasses
import enum
import json
import pathlib
import runpy
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from pipeline import cli
from trainer.config import TrainConfig, require

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T", bound="DataclassInstance")


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs a configuration file and applies `a.b=value` overrides in order.

    `trainer/configs/NAME.py` is found where the package is installed, too.
    """
    file = pathlib.Path(path)
    if not file.is_file() and file.parts[:2] == ("trainer", "configs"):
        file = pathlib.Path(__file__).parents[1] / path
    if not file.is_file():
        raise ValueError(f"--config={path}: expected a Python file")
    try:
        values = to_dict(_get_config(file))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"--config={path}: {error}") from error
    _override_all(TrainConfig, values, overrides)
    return from_dict(TrainConfig, values)


def changed(config: T, overrides: Sequence[str]) -> T:
    """A configuration with `a.b=value` overrides applied in order."""
    values = plain(config)
    _override_all(type(config), values, overrides)
    return from_dict(type(config), values)


def _get_config(path: str | pathlib.Path) -> TrainConfig:
    try:
        namespace = runpy.run_path(str(path))
    except (AttributeError, ImportError, NameError, SyntaxError) as error:
        raise ValueError(str(error)) from error
    if "get_config" not in namespace:
        raise ValueError("expected a function get_config()")
    return namespace["get_config"]()


def to_dict(config: TrainConfig) -> dict:
    """Nested dictionaries, lists, numbers and strings, as JSON holds them."""
    if not isinstance(config, TrainConfig):
        raise TypeError(f"get_config() returned {type(config)}: expected a TrainConfig")
    return plain(config)


def plain(config: "DataclassInstance") -> dict:
    """The fields of any dataclass, as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[T], values: Mapping, prefix: str = "") -> T:
    """Builds a dataclass from nested dictionaries, and checks names and types."""
    hints = typing.get_type_hints(kind)
    for name in values:
        _known(name, hints, prefix)
    for field in dataclasses.fields(kind):
        require(
            field.name in values or not _is_required(field),
            f"{prefix}{field.name} is missing",
            _described(hints[field.name]),
        )
    return kind(
        **{
            name: _typed(hints[name], value, f"{prefix}{name}")
            for name, value in values.items()
        }
    )


def _override_all(kind: type, values: dict, assignments: Sequence[str]) -> None:
    cli.expect_once("--set", assignments)
    for assignment in assignments:
        _override(kind, values, assignment)


def _override(kind: type, values: dict, assignment: str) -> None:
    """Puts the value of `a.b=value` into nested dictionaries."""
    path, is_assignment, text = assignment.partition("=")
    require(bool(is_assignment), f"--set {assignment}", "a.b=value")
    hint: typing.Any = kind
    *groups, last = path.split(".")
    for depth, name in enumerate(groups):
        hint = _member(hint, name, ".".join(groups[:depth]))
        values = values[name]
    hint = _member(hint, last, ".".join(groups))
    values[last] = text if _is_text(hint) else _literal(text)


def _member(hint: typing.Any, name: str, prefix: str) -> typing.Any:
    """The type of a field of a dataclass, or of the values of a mapping."""
    if _is_mapping(hint):
        return typing.get_args(hint)[1]
    if not dataclasses.is_dataclass(hint):
        raise ValueError(f"--set {prefix}.{name}: {prefix} has no fields")
    hints = typing.get_type_hints(hint)
    _known(name, hints, f"{prefix}." if prefix else "")
    return hints[name]


def _known(name: str, hints: Mapping[str, typing.Any], prefix: str) -> None:
    if name not in hints:
        raise ValueError(
            f"{prefix}{name}: no such field, expected one of {', '.join(hints)}"
        )


def _typed(hint: typing.Any, value: typing.Any, name: str) -> typing.Any:
    """Checks that `value` is a `hint`, and makes dataclasses, enums and tuples."""
    is_class = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    if is_class and isinstance(value, Mapping):
        return from_dict(hint, value, f"{name}.")
    if _is_mapping(hint) and isinstance(value, Mapping):
        kind = typing.get_args(hint)[1]
        return {key: _typed(kind, item, f"{name}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        require(len(kinds) == len(value), f"{name}={value}", f"{len(kinds)} values")
        return tuple(map(_typed, kinds, value, [name] * len(kinds)))
    if isinstance(hint, enum.EnumType) and value in list(hint):
        return hint(value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{name}={value!r}: expected {_described(hint)}")


def _described(hint: typing.Any) -> str:
    if isinstance(hint, enum.EnumType):
        return f"one of {', '.join(hint)}"
    if dataclasses.is_dataclass(hint):
        return f"a group of {', '.join(typing.get_type_hints(hint))}"
    return str(hint) if isinstance(hint, types.GenericAlias) else hint.__name__


def differences(old: Mapping, new: Mapping) -> Iterator[tuple[str, object, object]]:
    """Yields (a.b, old value, new value) where two nested dictionaries differ."""
    for name in sorted({*old, *new}):
        ours, theirs = old.get(name), new.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            for path, old_value, new_value in differences(ours, theirs):
                yield f"{name}.{path}", old_value, new_value
        elif ours != theirs:
            yield name, ours, theirs


def _literal(text: str) -> object:
    """A Python literal, or the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _is_mapping(hint: typing.Any) -> bool:
    return typing.get_origin(hint) is Mapping


def _is_text(hint: typing.Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, str)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
