"""A crawler's record of a pair: address, directives, failure, original size.

In: a JSON object, or the columns of a row, by the names that img2dataset, LAION and
Hugging Face sets use, whatever their case and separators. Out: one `Recorded` per pair.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

from pipeline.sources import robots
from recipes.validation import one_line

URL_NAMES = (
    *("url", "imageurl", "imgurl", "originalurl", "imagelink", "imgsrc", "imagesrc"),
    *("imageuri", "uri", "contenturl", "downloadurl"),
)
ROBOTS_NAMES = (
    *("xrobotstag", "xrobotstags", "xrobots", "robots", "robotstag", "robotstags"),
    *("robotsmeta", "metarobots", "robotsdirective", "robotsdirectives"),
)
# Objects, or texts of them, whose fields count as those of the pair.
NESTED_NAMES = (
    *("json", "meta", "metadata", "header", "headers", "httpheaders"),
    *("responseheaders", "response", "http", "htmlmeta", "pagemeta", "metatags"),
)
_FLAG_NAMES = ("noai", "noimageai", "noindex", "noimageindex")  # directives themselves
_FAILURE_NAMES = ("status", "errormessage")
_SIZE_NAMES = ("originalwidth", "originalheight")
_OTHER_NAMES = (*_FLAG_NAMES, *_FAILURE_NAMES, *_SIZE_NAMES)
NAMES = frozenset((*URL_NAMES, *ROBOTS_NAMES, *NESTED_NAMES, *_OTHER_NAMES))

_DIRECTIVE_NAMES = (*ROBOTS_NAMES, *_FLAG_NAMES)
_MAY_HOLD_DIRECTIVES = frozenset((*_DIRECTIVE_NAMES, *NESTED_NAMES))
_SURE_ROBOTS_NAMES = ROBOTS_NAMES[:3]  # wherever they stand; others may be labels
_ROBOTS_HEADER = re.compile(r"x[-_ ]?robots[-_ ]?tag[^\w\r\n]*(.*)", re.IGNORECASE)
_ROBOTS_META = re.compile(r"<meta\b[^>]*\brobots\b[^>]*>", re.IGNORECASE)
_MAX_NAME_CHARS = 64  # no name that is looked for is as long
_MAX_URL_CHARS = 1 << 16  # of what is longer the end is left out
_MAX_FAILURE_CHARS = 200
_MAX_SIDE_PX = 1 << 31


@dataclasses.dataclass(frozen=True, slots=True)
class Recorded:
    """The record of one pair, besides image and text."""

    url: str = ""
    robots: str = ""  # directives of its owner
    failure: str = ""  # why there is no image: "failed_to_download: HTTP Error 404"
    original_width: int = 0  # pixels, before any resizing; 0 if not recorded
    original_height: int = 0

    @classmethod
    def of(cls, record: object) -> "Recorded":
        """Reads a value of JSON, which should be a dict."""
        fields: dict[str, object] = {}
        for name, value in _fields(record):
            if value is not None and value != "":
                fields.setdefault(name, value)
        width, height = _size_px(fields)
        return cls(
            url=_first_text(fields, URL_NAMES)[:_MAX_URL_CHARS],
            robots=_robots(record) if _may_opt_out(record, fields) else "",
            failure=_failure(fields),
            original_width=width,
            original_height=height,
        )

    @classmethod
    def of_json(cls, data: bytes) -> "Recorded":
        """Reads the text of an object; an unreadable one counts as an opt-out."""
        try:
            encoding = json.detect_encoding(data)
            return cls.of(json.loads(data.decode(encoding, errors="replace")))
        except (ValueError, RecursionError):
            return cls(robots=robots.not_understood("damaged metadata"))


def plain_name(name: object) -> str:
    """A name without case and separators: `X-Robots-Tag` is `xrobotstag`.

    webdataset's own (`__url__` of the tar) and names that nobody looks for are "". All
    names with the header's in them are one (`http_x_robots_tag`).
    """
    is_short = isinstance(name, str) and len(name) <= _MAX_NAME_CHARS
    return _plain(name) if is_short else ""


@functools.lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    plain = "" if name.startswith("__") else re.sub("[^a-z0-9]", "", name.lower())
    return ROBOTS_NAMES[0] if ROBOTS_NAMES[0] in plain else plain


def _fields(record: object) -> Iterator[tuple[str, object]]:
    """Plain name and value of fields with one of NAMES, also of nested ones."""
    if not isinstance(record, dict):
        return
    for name, plain in _known_names(tuple(record)):
        value = record[name]
        yield plain, value
        if plain in NESTED_NAMES:
            for inner, nested in _items(_parse(value)):
                if (plain_inner := plain_name(inner)) in NAMES:
                    yield plain_inner, nested


@functools.lru_cache(maxsize=256)  # all records of a shard have the same fields
def _known_names(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The names of fields that are in NAMES, each as it is written and plain."""
    plain = ((name, plain_name(name)) for name in names)
    return tuple(both for both in plain if both[1] in NAMES)


def _may_opt_out(record: object, fields: Mapping[str, object]) -> bool:
    """Whether directives must be searched for, which takes its time."""
    if not isinstance(record, dict) or not _MAY_HOLD_DIRECTIVES.isdisjoint(fields):
        return True
    return any(map(_may_nest_directives, record.values()))


def _may_nest_directives(value: object) -> bool:
    """Whether it is an object, or the text of one that mentions robots."""
    if isinstance(value, str):
        return value.startswith(("{", "[")) and "robots" in value.lower()
    return type(value) in (dict, list)


def _items(value: object) -> Iterable[tuple[object, object]]:
    """The items of a dict, or of a list of pairs, as Arrow has maps."""
    if isinstance(value, dict):
        return value.items()
    return [item for item in value if _is_pair(item)] if isinstance(value, list) else ()


def _is_pair(item: object) -> TypeGuard[tuple[str, object]]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        return False
    return isinstance(item[0], str)


def _parse(value: object) -> object:
    """The object that a text holds; other values as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _robots(record: object) -> str:
    try:
        return robots.join(_directives(record, _DIRECTIVE_NAMES))
    except RecursionError:
        return robots.not_understood("metadata nested too deep")


def _directives(value: object, names: tuple[str, ...]) -> Iterator[object]:
    """Values of fields of these names, and of headers at any depth."""
    for name, item in _items(value):
        plain = plain_name(name)
        if plain in names:
            yield {plain: item} if plain in _FLAG_NAMES else _parse(item)
        elif plain in NESTED_NAMES:
            yield from _directives(_parse(item), ROBOTS_NAMES)
        elif _may_nest_directives(item):
            yield from _directives(_parse(item), _SURE_ROBOTS_NAMES)
    if isinstance(value, dict) and names != _DIRECTIVE_NAMES:
        yield from _named_values(value, names)
    if isinstance(value, list):
        for item in value:
            if not _is_pair(item):
                yield from _directives(item, names)
    if isinstance(value, str) and names == ROBOTS_NAMES:
        yield from _ROBOTS_HEADER.findall(value)
        yield from _ROBOTS_META.findall(value)


def _named_values(header: dict, names: tuple[str, ...]) -> Iterator[object]:
    """Values of `{"name": "X-Robots-Tag", "value": "noai"}`, by any field names."""
    rest = [item for item in header.values() if plain_name(item) not in names]
    if len(rest) < len(header):
        yield rest


def _first_text(fields: Mapping[str, object], names: tuple[str, ...]) -> str:
    for name in names:
        value = fields.get(name)
        if isinstance(value, list):
            value = next((item for item in value if item and item == item), None)
        if isinstance(value, str) and value:
            # JSON can hold half a surrogate pair, UTF-8 cannot.
            return value.encode(errors="replace").decode()
    return ""


def _failure(fields: Mapping[str, object]) -> str:
    """Status and error message, as img2dataset records them."""
    status, message = (fields.get(name, "") for name in _FAILURE_NAMES)
    if status == "success":
        return ""
    said = (str(part) for part in (status, message) if part == part)  # unless NaN
    return one_line(": ".join(filter(None, said)), _MAX_FAILURE_CHARS)


def _size_px(fields: Mapping[str, object]) -> tuple[int, int]:
    """Width and height before any resizing; 0, 0 unless both are known."""
    width, height = (_side_px(fields.get(name)) for name in _SIZE_NAMES)
    return (width, height) if width and height else (0, 0)


def _side_px(value: object) -> int:
    """A side in pixels; 0 for null, NaN, a text or a number below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 1 <= value <= _MAX_SIDE_PX else 0
