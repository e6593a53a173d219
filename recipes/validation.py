"""Checks of settings; each error names the value and what was expected."""

import re
from collections.abc import Sequence

from recipes.user_code import UserCodeError, call

# For fields that enter a fingerprint only with a value other than their default, so
# that older runs keep the names of their tables.
ADDED_LATER = {"added_later": True}

_MAX_SHOWN_CHARS = 120


def shown(value: object) -> str:
    """Returns the `repr` of a value on one line, cut to a length."""
    try:
        text = call(repr, value)
    except UserCodeError:
        text = f"a {type(value).__name__}"
    return one_line(text, _MAX_SHOWN_CHARS)


def one_line(text: str, max_chars: int) -> str:
    """Returns the text without line breaks, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def expect(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={shown(value)}: expected {expected}")


def require(is_met: bool, found: str, expected: str) -> None:
    """Raises ValueError unless a condition is met, for checks of several values.

    `found` is what the message begins with, such as `width=5, n_heads=2`.
    """
    if not is_met:
        raise ValueError(f"{found}: expected {expected}")


def require_positive(config: object, name: str) -> None:
    """Raises ValueError unless a number of a configuration is more than 0."""
    value = getattr(config, name)
    require(value > 0, f"{name}={value}", "more than 0")


def expect_cosine(name: str, value: float) -> None:
    expect(-1 <= value <= 1, name, value, "a cosine in [-1, 1]")


def expect_name(field: str, name: str) -> None:
    is_valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is not None
    expect(is_valid, field, name, "a name of letters, digits, _ and -")


def expect_names(kind: str, names: Sequence[str]) -> None:
    """Raises ValueError unless the items of a tuple have valid names that differ."""
    for index, name in enumerate(names):
        expect_name(f"{kind}.{index}.name", name)
    expect(len(set(names)) == len(names), kind, tuple(names), "names that differ")
