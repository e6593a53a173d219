"""A configuration as lines, and how two of them differ."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One field that two configurations say different things of."""

    path: str
    value: str
    other: str


def flat(config: Any) -> dict[str, str]:
    """Path to value of every field, as `config.to_json` gives them."""
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


def differences(config: Mapping[str, str], other: Mapping[str, str]) -> list[Setting]:
    """Fields that differ, in order; what one lacks is "" there."""
    paths = dict.fromkeys((*config, *other))
    both = (Setting(path, config.get(path, ""), other.get(path, "")) for path in paths)
    return [setting for setting in both if setting.value != setting.other]
