"""JSON files on any file system.

In: a path or a value. Out: the value, or a file that is replaced as a whole.
"""

import json
from typing import Any

from pipeline.storage import files


def read_json(path: str) -> Any:
    """Reads a JSON file; None if there is no such file."""
    try:
        return json.loads(files.read(path))
    except FileNotFoundError:
        return None


def write_json(path: str, value: Any) -> None:
    """Writes a value as JSON; leaves a file alone that holds the same bytes."""
    write_changed(path, json.dumps(value, indent=1).encode() + b"\n")


def write_changed(path: str, data: bytes) -> None:
    """Writes a file, but leaves one alone that holds the same bytes."""
    try:
        is_same = files.read(path) == data
    except FileNotFoundError:
        is_same = False
    if not is_same:
        files.write(path, data)
