"""Captions made elsewhere: the files that hold them, and the texts of their rows.

In: Parquet or JSON lines files on any file system that Beam knows. A row names an image
by one column (image_hash, sample_id or url), and has a text or a list of texts. Out:
one `ImportedText` a text, in the order of the file. What is wrong with a row is its
error; what is wrong with a file is the error of one last row that stands for the rest.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import typing
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.captions import Granularity
from pipeline.sources import caption_files
from pipeline.sources.parquet import open_parquet
from pipeline.storage import files, patterns
from pipeline.storage.prefetch import map_ahead
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

_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
_HASH_BYTES = 16
_MAX_ERROR_CHARS = 200
_MAX_SAMPLE_INDEX = 1 << 20
_MAX_LINE_BYTES = 16 << 20  # a file without newlines must not fill the memory
_N_ROWS_OF_COLUMNS = 100  # JSON objects whose names count as columns
_ROWS_PER_BATCH = 1024
_N_FILES_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class ImportedFile:
    """One file; `name` is its path within the folder that all files lie in."""

    uri: str
    name: str
    n_bytes: int
    digest: str  # BLAKE2b-128 of its bytes, as hex


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a file has what; `sample_index` is "" where it has none."""

    key_name: str  # "image_hash", "sample_id" or "url"
    key: str
    text: str
    sample_index: str


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class ImportedText:
    """One text, and what names its images; ordered as in its file."""

    row: int  # of its file: the number of the line, or of the row from 1
    key: bytes  # 16 bytes, or a URL
    sample_index: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadableRow:
    """Why a row, or some texts of it, cannot be read."""

    row: int
    error: str


def list_files(granularity: Granularity) -> tuple[ImportedFile, ...]:
    """The files of a granularity, ordered by their contents: names decide nothing.

    Raises:
      ValueError: if its glob matches nothing, or what is no such file.
    """
    try:
        uris = patterns.matched(granularity.checkpoint, "files of captions")
    except ValueError as error:
        raise _wrong(granularity, str(error)) from error
    for uri in uris:
        if not uri.endswith(_SUFFIXES):
            expected = ", ".join(_SUFFIXES)
            raise _wrong(
                granularity, f"expected {expected} files only, but it matches {uri}"
            )
    common = os.path.commonprefix(uris)  # noqa: RUF071 - commonpath spoils gs://
    n_common = common.rfind("/") + 1
    try:
        contents = list(map_ahead(_size_and_digest, uris, _N_FILES_AHEAD))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise _wrong(granularity, f"expected files to read: {error}") from error
    found = [
        ImportedFile(uri, uri[n_common:], *content)
        for uri, content in zip(uris, contents, strict=True)
    ]
    return tuple(sorted(found, key=lambda file: (file.digest, file.name)))


def contents_digest(imported: Sequence[ImportedFile]) -> str:
    """Identity of what the files hold, whatever they are called."""
    lines = "\n".join(sorted(file.digest for file in imported))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def describe(imported: Sequence[ImportedFile]) -> list[dict[str, Any]]:
    """Name, size and digest of each file, by name."""
    return [
        {"name": file.name, "n_bytes": file.n_bytes, "digest": file.digest}
        for file in sorted(imported, key=lambda file: (file.name, file.digest))
    ]


def check(granularity: Granularity) -> None:
    """Raises ValueError unless all files name images and texts, by the same column."""
    uris = files.find(granularity.checkpoint)
    try:
        columns = list(map_ahead(find_columns, uris, _N_FILES_AHEAD))
    except ValueError as error:
        raise _wrong(granularity, str(error)) from error
    key_to_uri = {
        found.key_name: uri
        for uri, found in zip(uris, columns, strict=True)
        if found is not None
    }
    if not key_to_uri:
        raise _wrong(granularity, "expected rows with captions in its files")
    if len(key_to_uri) > 1:
        found = " and ".join(f"{name} in {uri}" for name, uri in key_to_uri.items())
        raise _wrong(granularity, f"expected one column in all files, found {found}")


def key_name(imported: Sequence[ImportedFile]) -> str:
    """The field of a pair that the files name images by; they have been checked."""
    found = (find_columns(file.uri) for file in imported)
    return next(columns.key_name for columns in found if columns is not None)


def find_columns(uri: str) -> Columns | None:
    """The columns of a file; None if it holds no row that could tell.

    Raises:
      ValueError: if it cannot be read, or has none or two of what it must have one of.
    """
    with files.open_for_reading(uri) as file:
        try:
            if uri.endswith(".parquet"):
                with open_parquet(file) as parquet:
                    return _parquet_columns(parquet.schema_arrow)
            return _json_columns(_unpacked(file, uri))
        except ValueError as error:
            raise ValueError(f"{uri}: {error}") from error


def read(uri: str) -> Iterator[ImportedText | UnreadableRow]:
    """Reads all texts of a file whose columns have been checked."""
    columns = find_columns(uri)
    with files.open_for_reading(uri) as file:
        if uri.endswith(".parquet"):
            rows = _parquet_rows(file)
        else:
            rows = _json_rows(_unpacked(file, uri))
        for number, row in rows:
            if isinstance(row, ValueError):
                yield UnreadableRow(number, str(row))
            elif columns is not None:
                yield from parse_row(number, row, columns)


def parse_row(
    number: int, row: dict[str, Any], columns: Columns
) -> Iterator[ImportedText | UnreadableRow]:
    """The texts of a row and, if something is wrong with it, last of all its error.

    A list of texts counts on from the row's sample index, which is 0 where it has none.
    """
    try:
        key = _parsed_key(row.get(columns.key), columns)
        first_index = _parsed_index(
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
            yield ImportedText(number, key, index, _parsed_text(value))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        yield UnreadableRow(number, one_line("; ".join(errors), _MAX_ERROR_CHARS))


def _parsed_key(value: object, columns: Columns) -> bytes:
    if value is None:
        raise ValueError(f"no {columns.key}")
    if columns.key_name == "url":
        url = _decoded(value, columns.key).encode()
        if not url:
            raise ValueError(f"no {columns.key}")
        return url
    if isinstance(value, bytes) and len(value) == _HASH_BYTES:
        return value
    text = _decoded(value, columns.key)
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(text)
        if len(key) == _HASH_BYTES and len(text) == 2 * _HASH_BYTES:
            return key
    shown = text[: 4 * _HASH_BYTES]
    raise ValueError(f"{columns.key} {shown!r}: expected {_HASH_BYTES} bytes or hex")


def _parsed_index(value: object) -> int:
    if value is None:
        return 0
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 0 <= typing.cast(int, value) <= _MAX_SAMPLE_INDEX:
        raise ValueError(
            f"{_INDEX_COLUMN} {shown(value)}: expected a whole number from 0 "
            f"to {_MAX_SAMPLE_INDEX}"
        )
    return typing.cast(int, value)


def _parsed_text(value: object) -> str:
    if value is None:
        raise ValueError("no text")
    text = _decoded(value, "text")
    if not text.strip():
        raise ValueError("empty text")
    if "\0" in text:  # prompts mark the place of the image with it
        raise ValueError("text with a null character")
    return text


def _decoded(value: object, what: str) -> str:
    """Text of Parquet (bytes) or JSON (str), both of which can hold no UTF-8."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            return value.encode().decode()  # JSON can hold half a surrogate pair
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{what} is not UTF-8: {error.reason}") from error
    raise ValueError(f"{what} is of type {type(value).__name__}: expected text")


# Columns: exactly one that names images, one of texts, at most one of indexes.


def _columns(
    names: Sequence[str],
    is_usable: Callable[[str, str], bool] = lambda role, name: True,
) -> Columns:
    """`is_usable("key", NAME)` says whether a column may hold keys."""
    key = _only_one(
        [n for n in names if n in _COLUMN_TO_KEY and is_usable("key", n)],
        "image_hash, sample_id or url",
        names,
    )
    text = _only_one(
        [n for n in names if n in _TEXT_COLUMNS and is_usable("text", n)],
        "text or caption",
        names,
    )
    index = _INDEX_COLUMN if _INDEX_COLUMN in names else ""
    if index and not is_usable("sample_index", index):
        raise ValueError(f"expected whole numbers in the column {index}")
    return Columns(_COLUMN_TO_KEY[key], key, text, index)


def _only_one(found: Sequence[str], expected: str, names: Sequence[str]) -> str:
    if len(found) != 1:
        what = " and ".join(found) or f"none among {one_line(', '.join(names), 120)}"
        raise ValueError(f"expected one usable column {expected}, found {what}")
    return found[0]


def _parquet_columns(schema: pa.Schema) -> Columns:
    def is_usable(role: str, name: str) -> bool:
        kind = _value_type(schema.field(name).type)
        if role == "sample_index":
            return pa.types.is_integer(kind)
        if role == "text" and _is_list(kind):
            kind = _value_type(kind.value_type)
        return _is_bytes(kind)

    names = [name for name in schema.names if schema.names.count(name) == 1]
    return _columns(names, is_usable)


def _json_columns(file: typing.BinaryIO) -> Columns | None:
    names: dict[str, None] = {}  # a set that keeps its order
    n_found = 0
    for _, row in _json_rows(file):
        if isinstance(row, _DamageError) and not n_found:
            raise row
        if isinstance(row, dict):
            names |= dict.fromkeys(row)
            n_found += 1
        if n_found == _N_ROWS_OF_COLUMNS:
            break
    return _columns(list(names)) if n_found else None


# Rows: their number, and the values of their columns or what is wrong with them.

_Rows = Iterator[tuple[int, dict[str, Any] | ValueError]]


class _DamageError(ValueError):
    """Why the rest of a file cannot be read."""


def _parquet_rows(file: typing.BinaryIO) -> _Rows:
    """Row groups are read one by one, so that a damaged one costs none before it."""
    n_read = 0
    try:
        with open_parquet(file) as parquet:
            columns = _parquet_columns(parquet.schema_arrow)
            names = [columns.key, columns.text, columns.sample_index]
            names = [name for name in names if name]
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(
                    _ROWS_PER_BATCH, [group], columns=names
                ):
                    values = [_python_values(batch.column(name)) for name in names]
                    for row in zip(*values, strict=True):
                        n_read += 1
                        yield n_read, dict(zip(names, row, strict=True))
    except ValueError as error:
        yield n_read + 1, _DamageError(f"this row and the rest: {error}")


def _json_rows(file: typing.BinaryIO) -> _Rows:
    """Passes over blank lines, which have numbers all the same."""
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
                yield number, _json_object(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, _DamageError(f"this line and the rest: {error}")


def _json_object(line: bytes) -> dict[str, Any] | ValueError:
    try:
        row = json.loads(
            line.decode("utf-8-sig"), object_pairs_hook=caption_files.unrepeated
        )
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8: {error.reason} at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")
    if not isinstance(row, dict):
        return ValueError(f"JSON {type(row).__name__}: expected an object")
    return row


def _unpacked(file: typing.BinaryIO, uri: str) -> typing.BinaryIO:
    if uri.endswith(".gz"):
        return typing.cast(typing.BinaryIO, gzip.GzipFile(fileobj=file))
    return file


def _python_values(column: pa.Array) -> list:
    """Texts come as bytes: Arrow would stop at the first that is no UTF-8."""
    kind = _value_type(column.type)
    if pa.types.is_integer(kind):
        return column.to_pylist()
    binary = pa.large_binary()
    return column.cast(pa.large_list(binary) if _is_list(kind) else binary).to_pylist()


def _value_type(kind: pa.DataType) -> pa.DataType:
    """Of the values that a dictionary, as pandas makes them, stands for."""
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


def _size_and_digest(uri: str) -> tuple[int, str]:
    digest, n_bytes = hashlib.blake2b(digest_size=16), 0
    with files.open_for_reading(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            n_bytes += len(piece)
    return n_bytes, digest.hexdigest()


def _wrong(granularity: Granularity, problem: str) -> ValueError:
    return ValueError(
        f"checkpoint={granularity.checkpoint!r} of granularity "
        f"{granularity.name!r}: {problem}"
    )
