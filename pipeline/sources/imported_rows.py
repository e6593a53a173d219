"""The rows of files with imported captions: their columns, keys and texts.

In: an open Parquet or JSON lines file. Out: its columns, its rows as dicts, and the
texts of a row. An error in a row is a value in its place; an error in a file is the
value of one last row that stands for the rest.
"""

import contextlib
import dataclasses
import gzip
import json
import typing
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.sources.caption_files import object_without_repeats
from pipeline.sources.parquet import open_parquet
from recipes.validation import one_line, shown

# Column to the field of a `records.Pair` that it equals.
_COLUMN_TO_KEY = {
    "image_hash": "image_hash",
    "sample_id": "sample_id",
    "url": "url",
    "URL": "url",
}
_TEXT_COLUMNS = (
    "text",
    "texts",
    "caption",
    "captions",
    "synthetic_caption",
    "TEXT",
)
_INDEX_COLUMN = "sample_index"

_HASH_BYTES = 16
_MAX_ERROR_CHARS = 200
_MAX_SAMPLE_INDEX = 1 << 20
_MAX_LINE_BYTES = 16 << 20  # a file without newlines must not fill the memory
_N_ROWS_OF_COLUMNS = 100  # JSON objects whose names count as columns
_ROWS_PER_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a file; `sample_index` is "" if there is none."""

    key_name: str  # "image_hash", "sample_id" or "url"
    key: str
    text: str
    sample_index: str


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class ImportedText:
    """One text and the key of its images; sorts as in its file."""

    row: int  # of its file: the number of the line, or of the row from 1
    key: bytes  # 16 bytes, or a URL
    sample_index: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableRow:
    """Why a row, or some texts of it, cannot be read."""

    row: int
    error: str


def parse_row(
    number: int, row: dict[str, Any], columns: Columns
) -> Iterator[ImportedText | UnreadableRow]:
    """Yields the texts of a row, and its errors as one last item.

    A list of texts counts on from the row's sample index, which is 0 where it has none.
    """
    try:
        key = _parse_key(row.get(columns.key), columns)
        first_index = _parse_index(
            row.get(columns.sample_index) if columns.sample_index else None
        )
        values = row.get(columns.text)
        texts = values if isinstance(values, list) else [values]
        if not texts:
            raise ValueError("no text")
    except ValueError as error:
        yield UnreadableRow(number, str(error))
        return
    errors = []
    for index, value in enumerate(texts, first_index):
        try:
            yield ImportedText(number, key, index, _parse_text(value))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        yield UnreadableRow(number, one_line("; ".join(errors), _MAX_ERROR_CHARS))


def _parse_key(value: object, columns: Columns) -> bytes:
    if value is None:
        raise ValueError(f"no {columns.key}")
    if columns.key_name == "url":
        url = _decode(value, columns.key).encode()
        if not url:
            raise ValueError(f"no {columns.key}")
        return url
    if isinstance(value, bytes) and len(value) == _HASH_BYTES:
        return value
    text = _decode(value, columns.key)
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(text)
        if len(key) == _HASH_BYTES and len(text) == 2 * _HASH_BYTES:
            return key
    shown = text[: 4 * _HASH_BYTES]
    raise ValueError(f"{columns.key} {shown!r}: expected {_HASH_BYTES} bytes or hex")


def _parse_index(value: object) -> int:
    if value is None:
        return 0
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 0 <= typing.cast(int, value) <= _MAX_SAMPLE_INDEX:
        raise ValueError(
            f"{_INDEX_COLUMN} {shown(value)}: expected a whole number from 0 "
            f"to {_MAX_SAMPLE_INDEX}"
        )
    return typing.cast(int, value)


def _parse_text(value: object) -> str:
    if value is None:
        raise ValueError("no text")
    text = _decode(value, "text")
    if not text.strip():
        raise ValueError("empty text")
    if "\0" in text:  # prompts mark the place of the image with it
        raise ValueError("text with a null character")
    return text


def _decode(value: object, what: str) -> str:
    """Decodes a text of Parquet (bytes) or JSON (str); neither need be UTF-8."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            return value.encode().decode()  # JSON can hold half a surrogate pair
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{what} is not UTF-8: {error.reason}") from error
    raise ValueError(f"{what} is of type {type(value).__name__}: expected text")


# Columns: exactly one that names images, one of texts, at most one of indexes.


def _find_columns(
    names: Sequence[str],
    is_usable: Callable[[str, str], bool] = lambda role, name: True,
) -> Columns:
    """Finds the columns; `is_usable("key", NAME)` tests whether one may hold keys."""
    key = _expect_one(
        [n for n in names if n in _COLUMN_TO_KEY and is_usable("key", n)],
        "image_hash, sample_id or url",
        names,
    )
    text = _expect_one(
        [n for n in names if n in _TEXT_COLUMNS and is_usable("text", n)],
        "text or caption",
        names,
    )
    index = _INDEX_COLUMN if _INDEX_COLUMN in names else ""
    if index and not is_usable("sample_index", index):
        raise ValueError(f"expected whole numbers in the column {index}")
    return Columns(_COLUMN_TO_KEY[key], key, text, index)


def _expect_one(found: Sequence[str], expected: str, names: Sequence[str]) -> str:
    if len(found) != 1:
        what = " and ".join(found) or f"none among {one_line(', '.join(names), 120)}"
        raise ValueError(f"expected one usable column {expected}, found {what}")
    return found[0]


def parquet_columns(schema: pa.Schema) -> Columns:
    """The columns of a Parquet file; ValueError if one is missing or ambiguous."""

    def is_usable(role: str, name: str) -> bool:
        kind = _value_type(schema.field(name).type)
        if role == "sample_index":
            return pa.types.is_integer(kind)
        if role == "text" and _is_list(kind):
            kind = _value_type(kind.value_type)
        return _is_bytes(kind)

    names = [name for name in schema.names if schema.names.count(name) == 1]
    return _find_columns(names, is_usable)


def json_columns(file: typing.BinaryIO) -> Columns | None:
    """The columns of JSON lines by their first rows; None if there are no rows."""
    names: dict[str, None] = {}  # a set that keeps its order
    n_found = 0
    for _, row in json_rows(file):
        if isinstance(row, DamageError) and not n_found:
            raise row
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
            n_found += 1
        if n_found == _N_ROWS_OF_COLUMNS:
            break
    return _find_columns(list(names)) if n_found else None


# Rows: their number, and the values of their columns or what is wrong with them.

_Rows = Iterator[tuple[int, dict[str, Any] | ValueError]]


class DamageError(ValueError):
    """Why the rest of a file cannot be read."""


def parquet_rows(file: typing.BinaryIO) -> _Rows:
    """Reads row groups one by one: those before a damaged one are not lost."""
    n_read = 0
    try:
        with open_parquet(file) as parquet:
            columns = parquet_columns(parquet.schema_arrow)
            names = [columns.key, columns.text, columns.sample_index]
            names = [name for name in names if name]
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(
                    _ROWS_PER_BATCH, [group], columns=names
                ):
                    values = [_to_python(batch.column(name)) for name in names]
                    for row in zip(*values, strict=True):
                        n_read += 1
                        yield n_read, dict(zip(names, row, strict=True))
    except ValueError as error:
        yield n_read + 1, DamageError(f"this row and the rest: {error}")


def json_rows(file: typing.BinaryIO) -> _Rows:
    """Skips blank lines, but counts them."""
    number = 0
    try:
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE_BYTES)
                error = ValueError(f"line of over {_MAX_LINE_BYTES} bytes")
                yield number, error
            elif line.strip():
                yield number, _parse_object(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, DamageError(f"this line and the rest: {error}")


def _parse_object(line: bytes) -> dict[str, Any] | ValueError:
    try:
        row = json.loads(
            line.decode("utf-8-sig"),
            object_pairs_hook=object_without_repeats,
        )
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")
    if not isinstance(row, dict):
        return ValueError(f"JSON {type(row).__name__}: expected an object")
    return row


def _to_python(column: pa.Array) -> list:
    """Returns texts as bytes: Arrow would stop at the first that is not UTF-8."""
    kind = _value_type(column.type)
    if pa.types.is_integer(kind):
        return column.to_pylist()
    binary = pa.large_binary()
    return column.cast(pa.large_list(binary) if _is_list(kind) else binary).to_pylist()


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values; pandas writes dictionaries of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)
