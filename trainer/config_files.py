"""Training recipes as files: loaded, changed by `--set`, kept as JSON.

A recipe is a Python file with `get_config() -> TrainConfig`; `--set a.b=value` changes
single fields, by the grammar of `recipes.assignments`. The resolved configuration is
kept in the workdir as JSON, from which `from_dict` builds it again. Errors are
`ValueError`s that name the field.
"""

import pathlib
import typing
from collections.abc import Iterator, Mapping, Sequence

from recipes import recipe_file
from recipes.assignments import override
from recipes.plain_values import build_dataclass, to_plain
from trainer.config import TrainConfig

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = typing.TypeVar("T", bound="DataclassInstance")


def load(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs a configuration file and applies `a.b=value` overrides to its result.

    `trainer/configs/NAME.py` is found where the package is installed, too.
    """
    config = recipe_file.load(path, TrainConfig, "trainer/configs")
    return changed(config, overrides)


def changed(config: T, overrides: Sequence[str]) -> T:
    """A configuration with `a.b=value` overrides applied.

    Whole numbers become floats where a field is one, as in what workdirs keep.
    """
    return from_dict(type(config), plain(override(config, overrides)))


def to_dict(config: TrainConfig) -> dict:
    """Nested dictionaries, lists, numbers and strings, as JSON holds them."""
    return plain(config)


def plain(config: "DataclassInstance") -> dict:
    """The fields of any dataclass, as JSON holds them."""
    return to_plain(config)


def from_dict(kind: type[T], values: Mapping, prefix: str = "") -> T:
    """Builds a dataclass from nested dictionaries, and checks names and types."""
    return build_dataclass(kind, values, prefix, is_typed=True)


def differences(old: Mapping, new: Mapping) -> Iterator[tuple[str, object, object]]:
    """Yields (a.b, old value, new value) where two nested dictionaries differ."""
    for name in sorted({*old, *new}):
        ours, theirs = old.get(name), new.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            for path, old_value, new_value in differences(ours, theirs):
                yield f"{name}.{path}", old_value, new_value
        elif ours != theirs:
            yield name, ours, theirs
