"""Configurations as files: read, changed from the command line, kept as JSON.

A recipe is a Python file with `get_config() -> TrainConfig`; `--set a.b=value` changes
single fields. The resolved configuration is kept in the workdir as JSON, from which
`from_dict` builds it again. Errors are `ValueError`s that name the field.
"""

import ast
import dataclasses
import json
import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence

from recipes import command_line, recipe_file
from recipes.settings import as_type, described
from recipes.validation import one_line, require, shown
from trainer.config import TrainConfig

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T", bound="DataclassInstance")


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs a configuration file and applies `a.b=value` overrides in order.

    `trainer/configs/NAME.py` is found where the package is installed, too.
    """
    values = to_dict(recipe_file.load(path, TrainConfig, "trainer/configs"))
    _override_all(TrainConfig, values, overrides)
    return from_dict(TrainConfig, values)


def changed(config: T, overrides: Sequence[str]) -> T:
    """A configuration with `a.b=value` overrides applied in order."""
    values = plain(config)
    _override_all(type(config), values, overrides)
    return from_dict(type(config), values)


def to_dict(config: TrainConfig) -> dict:
    """Nested dictionaries, lists, numbers and strings, as JSON holds them."""
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
    command_line.expect_once("--set", assignments)
    for assignment in assignments:
        _override(kind, values, assignment)


def _override(kind: type, values: dict, assignment: str) -> None:
    """Puts the value of `a.b=value` into nested dictionaries."""
    path, is_assignment, text = assignment.partition("=")
    require(bool(is_assignment), f"--set {one_line(assignment, 80)}", "a.b=value")
    hint: typing.Any = kind
    *groups, last = path.split(".")
    for depth, name in enumerate(groups):
        hint = _member(hint, name, ".".join(groups[:depth]))
        values = values.get(name, {})
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
    """What a field holds, of what JSON or the command line holds."""
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, Mapping), f"{name}={shown(value)}", _described(hint))
        return from_dict(typing.cast(type, hint), value, f"{name}.")
    if _is_mapping(hint) and isinstance(value, Mapping):
        kind = typing.get_args(hint)[1]
        return {key: _typed(kind, item, f"{name}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    return as_type(hint, value, name)


def _described(hint: typing.Any) -> str:
    if dataclasses.is_dataclass(hint):
        return f"a group of {', '.join(typing.get_type_hints(hint))}"
    return described(hint)


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
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return text


def _is_mapping(hint: typing.Any) -> bool:
    return typing.get_origin(hint) is Mapping


def _is_text(hint: typing.Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, str)


def _is_required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing
