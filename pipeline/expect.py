"""Checks of settings, each of which names the value and what was expected."""

import re
import typing
from collections.abc import Sequence
from typing import Any

# For fields that no fingerprint contains while they have their default, so that runs
# that were there before the field keep their names.
ADDED_LATER = {"added_later": True}


def expect(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def expect_cosine(name: str, value: float) -> None:
    expect(-1 <= value <= 1, name, value, "a cosine in [-1, 1]")


def expect_choice(config: Any, name: str) -> None:
    """The value of a Literal field, which Python itself does not check."""
    choices = typing.get_args(typing.get_type_hints(type(config))[name])
    value = getattr(config, name)
    expect(value in choices, name, value, " or ".join(map(repr, choices)))


def expect_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        is_valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is not None
        expect(is_valid, kind, name, "a name of letters, digits, _ and -")
    expect(len(set(names)) == len(names), kind, tuple(names), "names that differ")
