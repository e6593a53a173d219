"""Fingerprints: short names of tables, made of everything that determines them.

In: parts of a recipe, digests of models and other fingerprints. Out: 12 hexadecimal
digits, equal exactly when the parts are.
"""

import dataclasses
import hashlib
import json
from typing import Any

from recipes.plain_values import to_json
from recipes.validation import ADDED_LATER

FORMAT_VERSION = 3  # of everything in a run folder

# Raised by hand when the code that makes a kind of table writes something else from the
# same settings and inputs; tables of before are then made again.
CODE_VERSIONS = {
    "pairs": 1,
    "language": 1,
    "embedding": 1,
    "description": 1,
    "similarity": 1,
    "decisions": 2,
    "captions": 1,
    "caption_language": 1,
    "caption_alignment": 1,
    "flags": 1,
}


def table_fingerprint(kind: str, *parts: Any) -> str:
    """The fingerprint of a kind of table: of its parts and the version of its code."""
    return fingerprint(kind, CODE_VERSIONS[kind], *parts)


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
