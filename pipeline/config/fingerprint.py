"""Fingerprints: short names of tables, made of everything that determines them.

In: parts of a recipe, digests of models and other fingerprints. Out: 12 hexadecimal
digits, equal exactly when the parts are.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from recipes.validation import ADDED_LATER, expect

FORMAT_VERSION = 2  # of everything in a run folder


def fingerprint(*parts: Any) -> str:
    """12 hexadecimal digits of what determines a table."""
    values = [to_json(part, fields_of=_determining_fields) for part in parts]
    text = json.dumps([FORMAT_VERSION, *values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _determining_fields(value: Any) -> list[dataclasses.Field]:
    return [
        field
        for field in dataclasses.fields(value)
        if not ADDED_LATER.keys() <= field.metadata.keys()
        or getattr(value, field.name) != field.default
    ]


def to_json(
    value: Any,
    *,
    fields_of: Callable[[Any], Iterable[dataclasses.Field]] = dataclasses.fields,
) -> Any:
    """A dataclass as plain JSON values, with the name of its class."""
    plain = functools.partial(to_json, fields_of=fields_of)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in fields_of(value)}
        return {"class": type(value).__name__} | {
            name: plain(item) for name, item in fields.items()
        }
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    is_plain = value is None or isinstance(value, (str, int, float))
    expect(is_plain, "recipe", value, "numbers, texts, tuples and dataclasses alone")
    return value
