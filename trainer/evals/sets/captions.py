"""Captions from the fields of a JSON object or a row, in the forms that sets use."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

PLAIN = "caption"  # granularity of captions that come without one
# The first of these that holds a text is taken; `txt` is a file KEY.txt.
FIELDS = ("captions", "caption", "txt", "text", "texts", "sentences", "alt_text")
_ABOUT = re.compile(r"(id|ids|key|lang|language|tokens|source|url)$")
_IN_OBJECTS = ("caption", "text", "raw", "sentence", "value")


class Captions(NamedTuple):
    """Captions by granularity, and the number of empty ones."""

    by_granularity: Mapping[str, tuple[str, ...]]
    n_empty: int  # texts that were null, or nothing but spaces


def parse_captions(fields: Mapping[str, object]) -> Captions:
    """Reads texts, lists of them, lists of objects with them, or any of these by
    granularity.

    Raises ValueError, which names the field, on a value that is no text.
    """
    n_empty = 0
    for field in FIELDS:
        value = fields.get(field)
        if not _is_nothing(value):
            found, n_missing = _by_granularity(field, value)
            n_empty += n_missing
            if found:
                return Captions(found, n_missing)
    return Captions({}, n_empty)


def _by_granularity(
    field: str, value: object
) -> tuple[Mapping[str, tuple[str, ...]], int]:
    is_named = isinstance(value, Mapping) and not _is_object(value)
    named = value if is_named and isinstance(value, Mapping) else {PLAIN: value}
    texts = {str(name): list(_texts(field, one)) for name, one in named.items()}
    kept = {name: tuple(filter(None, found)) for name, found in texts.items()}
    n_empty = sum(map(len, texts.values())) - sum(map(len, kept.values()))
    return {name: found for name, found in kept.items() if found}, n_empty


def _texts(field: str, value: object) -> Iterator[str]:
    """Texts without the spaces around them; "" for an empty one."""
    if isinstance(value, list | tuple | np.ndarray):
        for one in value:
            yield _text(field, one)
    elif not _is_nothing(value):
        yield _text(field, value)


def _text(field: str, value: object) -> str:
    if isinstance(value, Mapping):
        inner = (value[name] for name in _IN_OBJECTS if name in value)
        value = next(inner, value)
    if _is_nothing(value):
        return ""
    if isinstance(value, bytes):
        value = _decode(field, value)
    if not isinstance(value, str):
        shown = repr(value)[:60]
        raise ValueError(f"{field}: {shown}: expected a text or a list of texts")
    return value.strip()


def _decode(field: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        shown = repr(value[:40])
        raise ValueError(f"{field}: {shown}: expected a text in UTF-8") from error


def _is_object(value: Mapping) -> bool:
    """COCO's {"caption": ..., "id": ...}, and not texts by granularity."""
    others = {name: one for name, one in value.items() if name not in _IN_OBJECTS}
    is_about = any(
        _ABOUT.search(str(name)) or not isinstance(one, str | list | tuple | None)
        for name, one in others.items()
    )
    return len(others) < len(value) and (is_about or not others)


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
