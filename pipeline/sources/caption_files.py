"""Caption files that people write: CSV, JSON lines and JSON, to names and texts.

In: a file in UTF-8, or in UTF-16 with a byte order mark. Out: the file name and the
texts of each entry, none where it has no caption. What could mean two things is a
ValueError that names the place.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.validation import one_line, shown

_NAME_COLUMNS = ("file_name", "file", "filename", "image", "path")
_CAPTION_COLUMNS = ("caption", "captions", "text")
_SEPARATORS = (",", ";", "\t", "|")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE_END = re.compile(r"\r\n|\n|\r")  # all other ends of lines are part of a text
_PHOTO = re.compile(
    r"[^\s].*\.(?:jpe?g?|jfif|png|webp|gif|bmp|tiff?|hei[cf]|avif|jp2|jxl)", re.I
)
_MAX_MESSAGE_CHARS = 180

_Rows = Iterator[tuple[str, Any]]  # with their places, such as "line 3"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record of a file."""

    name: str  # of a photo
    texts: tuple[str, ...]


def read(path: pathlib.Path) -> list[Entry]:
    """The entries of a file in its order; all but .json and .jsonl is taken as CSV.

    Raises:
      ValueError: on what cannot be read, with the line, or the entry in JSON.
    """
    text = _decode(path.read_bytes())
    if path.suffix.lower() == ".json":
        rows = _json_rows(text)
    elif path.suffix.lower() == ".jsonl":
        is_array = text.lstrip().startswith("[")
        rows = _json_rows(text) if is_array else _json_lines(text)
    else:
        rows = _csv_rows(text)
    entries = []
    for place, row in rows:
        with _add_place(place):
            entries.append(_parse_entry(row))
    return entries


@contextlib.contextmanager
def _add_place(place: str) -> Iterator[None]:
    """Names the place in a ValueError, of which one short line stays."""
    try:
        yield
    except ValueError as error:
        message = one_line(str(error), _MAX_MESSAGE_CHARS)
        raise ValueError(f"{place}: {message}") from error


def _decode(data: bytes) -> str:
    encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="replace")
        with _add_place(_line_after(before)):
            raise ValueError(
                f"not {encoding.removesuffix('-sig')}: expected a file in UTF-8, or in"
                " UTF-16 with a byte order mark"
            ) from error
    before, null, _ = text.partition("\0")
    with _add_place(_line_after(before)):
        if null:
            raise ValueError("a null character: expected a text file in UTF-8")
    return text


def _line_after(text: str) -> str:
    return f"line {len(_LINE_END.findall(text)) + 1}"


def _csv_rows(text: str) -> _Rows:
    """Separated by what makes the first row a header."""
    separator = next((s for s in _SEPARATORS if _is_header(text, s)), _SEPARATORS[0])
    header: list[str] | None = None
    for place, fields in _read_records(text, separator):
        with _add_place(place):
            if header is None:
                header = _parse_header(fields)
            elif any(fields):  # a row of nothing but separators says nothing
                _check_record(fields, header, separator)
                yield place, dict(zip(header, fields, strict=True))


def _is_header(text: str, separator: str) -> bool:
    try:
        _, fields = next(_read_records(text, separator), ("", []))
        return bool(_parse_header(fields))
    except ValueError:
        return False


def _parse_header(fields: Sequence[str]) -> list[str]:
    """Names of columns; ValueError without the two that are needed, or twice one."""
    names = [field.casefold() for field in fields]
    for usual in (_NAME_COLUMNS, _CAPTION_COLUMNS):
        found = _find_first(names, usual)
        if names.count(found) > 1:
            raise ValueError(f"{', '.join(fields)}: expected one column {found}")
    return names


def _read_records(text: str, separator: str) -> Iterator[tuple[str, list[str]]]:
    """Yields where a record begins, and its fields; blank lines are none."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=True,
        strict=True,
    )
    place = "line 1"
    try:
        for fields in reader:
            if fields:
                yield place, [field.strip() for field in fields]
            place = f"line {reader.line_num + 1}"
    except csv.Error as error:
        is_open = "unexpected end of data" in str(error)
        raise ValueError(
            f"{place}: {'a quote is opened and never closed' if is_open else error}"
        ) from error


def _check_record(fields: Sequence[str], header: Sequence[str], separator: str) -> None:
    if len(fields) != len(header):
        raise ValueError(
            f"{len(fields)} fields, expected {len(header)} as in the header: a text"
            f" with {separator!r} in it needs quotes"
        )
    for field in fields:
        for line in _LINE_END.split(field)[1:]:
            if _is_record(line, separator):
                raise ValueError(f"a quote is opened and takes in {shown(line)}")


def _is_record(line: str, separator: str) -> bool:
    """Whether a field of a line is the name of a photo."""
    fields = [field.strip(' "') for field in line.split(separator)]
    return len(fields) > 1 and any(map(_PHOTO.fullmatch, fields))


def _json_lines(text: str) -> _Rows:
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line.strip():
            yield f"line {number}", _loads(line, number)


def _json_rows(text: str) -> _Rows:
    """Entries of a list, or of an object of names and captions; or lines after all."""
    try:
        content = _loads(text)
    except _ExtraDataError:
        yield from _json_lines(text)
        return
    if isinstance(content, dict) and _is_row(content):
        content = [content]
    elif isinstance(content, dict):
        content = [{"file": name, "caption": texts} for name, texts in content.items()]
    if not isinstance(content, list):
        raise ValueError(
            "line 1: expected a list of objects, or an object of names and captions"
        )
    for number, row in enumerate(content, 1):
        yield f"entry {number}", row


def _is_row(content: Mapping[str, Any]) -> bool:
    """Whether an object is one entry, and no object of names and captions."""
    names = {name.strip().casefold() for name in content}
    kinds = (_NAME_COLUMNS, _CAPTION_COLUMNS)
    return all(not names.isdisjoint(usual) for usual in kinds)


class _ExtraDataError(ValueError):
    """JSON that goes on after its first value."""


def _loads(text: str, line: int = 0) -> Any:
    """Parses JSON; `line` is the number of a line that is parsed by itself."""
    try:
        return json.loads(text, object_pairs_hook=object_without_repeats)
    except json.JSONDecodeError as error:
        kind = _ExtraDataError if error.msg == "Extra data" and not line else ValueError
        place = f"line {line or error.lineno}"
        raise kind(f"{place}: not JSON: {error.msg}: column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        with _add_place(f"line {line}" if line else "JSON"):
            raise ValueError(str(error)) from error


def object_without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if a key would replace another unseen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} comes twice, expected it once")
    return found


def _parse_entry(row: Any) -> Entry:
    if not isinstance(row, Mapping):
        raise ValueError(f"{shown(row)}: expected an object")
    columns = {name.strip().casefold(): value for name, value in row.items()}
    name = columns[_find_first(columns, _NAME_COLUMNS)]
    value = columns[_find_first(columns, _CAPTION_COLUMNS)]
    texts = [
        t for t in (value if isinstance(value, list) else [value]) if not _is_missing(t)
    ]
    is_named = isinstance(name, str) and name.strip()
    if not is_named or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{shown(row)}: expected a file name, and texts as its caption"
        )
    for text in (name, *texts):
        _check_text(text)
    stripped = (text.strip() for text in texts)
    return Entry(name.strip(), tuple(text for text in stripped if text))


def _is_missing(value: Any) -> bool:
    """Whether it stands for a text that is missing: null, or the NaN of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_text(text: str) -> None:
    is_whole = text.encode(errors="ignore").decode() == text  # JSON has half characters
    if not is_whole or "\0" in text:
        raise ValueError(f"{shown(text)}: expected text of whole characters")


def _find_first(names: Any, usual: Sequence[str]) -> str:
    """The first of the usual names that is there."""
    for name in usual:
        if name in names:
            return name
    found = one_line(", ".join(map(str, names)), 80)
    raise ValueError(f"{found}: expected a column {' or '.join(usual)}")
