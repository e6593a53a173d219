"""Configurations as flat lists of fields, and their differences."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A field whose value differs between two configurations."""

    path: str
    value: str
    other: str


def flatten(config: Any) -> dict[str, str]:
    """Returns path to JSON value of every field of a `to_json` configuration."""
    return dict(_walk(config, ""))


def _walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _walk(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        for number, item in enumerate(value):
            yield from _walk(item, f"{path}.{number}")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def find_differences(
    config: Mapping[str, str], other: Mapping[str, str]
) -> list[Setting]:
    """Fields that differ, in order; what one lacks is "" there."""
    paths = dict.fromkeys((*config, *other))
    both = (Setting(path, config.get(path, ""), other.get(path, "")) for path in paths)
    return [setting for setting in both if setting.value != setting.other]
