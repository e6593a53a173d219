"""Directives of owners for robots: how they are recorded, and which are opt-outs.

In: a value of `X-Robots-Tag` as crawlers, CSV, JSON and pandas leave it: a text, a
list, flags, headers. Out: one text per pair, and the opt-out in it. In doubt the owner
is right: a directive that is not understood is an opt-out.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import starmap

_MAX_CHARS = 1 << 12  # of the directives of one pair
_NOT_UNDERSTOOD = "not understood"

_CODE = re.compile(r"\\u([0-9a-f]{4})|(?:\\x|%)([0-9a-f]{2})")
_WHITE_SPACE = re.compile(r"\\[nrtbf]")
_UNSEEN = ("Cf", "Mn")  # joiners, soft hyphens, accents
_LETTERS = str.maketrans({"\u0131": "i"})  # what Turkish makes of I
# Of a preview, not of the image; `none` alone means `noindex, nofollow`:
# https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
_NO_PREVIEW = re.compile(r"max-image-preview\W*none")
_NONE = re.compile(r"(?<![^\W_])none(?![^\W_])")
_MEANT_BY_NONE = ("noindex", "nofollow")
_OFF = re.compile(r"\s*(?:None|(?i:false|0|no|off|null|nan))\s*")  # of flags
_NULL_OF_PYTHON = re.compile(r"\W*None\W*")


def not_understood(what: str) -> str:
    """Directives that nobody can read, which count as an opt-out."""
    return f"{_NOT_UNDERSTOOD}: {what}"


def join(values: Iterable[object]) -> str:
    """One text of recorded values; "" if they say nothing."""
    text = ", ".join(filter(None, map(_text, values)))
    if len(text) > _MAX_CHARS:
        return not_understood(f"{len(text):,} characters of directives")
    return text


def opt_out(robots: str, directives: Sequence[str]) -> str:
    """The first of `directives` that is a word of `robots`; "" if there is none.

    Case, hyphens and underscores do not count, nor do accents and what nobody sees, and
    a directive for one robot (`somebot: noai`) counts for all. What was not understood
    is returned as it is.
    """
    if not directives:
        return ""
    if _NOT_UNDERSTOOD in robots:
        return robots[robots.index(_NOT_UNDERSTOOD) :][:100]
    text = _WHITE_SPACE.sub(" ", _CODE.sub(_character, _ascii_like(robots).lower()))
    text = _NO_PREVIEW.sub(" ", text)
    is_none = not _NULL_OF_PYTHON.fullmatch(robots) and _NONE.search(text)
    meant = _MEANT_BY_NONE if is_none else ()
    return next((d for d in directives if _word(d).search(text) or d in meant), "")


def _character(code: re.Match[str]) -> str:
    return chr(int(code[1] or code[2], 16)).lower()


def _ascii_like(text: str) -> str:
    """Wide letters, dashes and spaces of all kinds as in ASCII, without marks."""
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text).translate(_LETTERS)
    kinds = ((char, unicodedata.category(char)) for char in plain)
    return "".join(
        "-" if kind == "Pd" else char for char, kind in kinds if kind not in _UNSEEN
    )


@functools.cache
def _word(directive: str) -> re.Pattern[str]:
    letters = "[-_]?".join(re.sub("[-_]", "", directive))
    return re.compile(rf"(?<![^\W_]){letters}(?![^\W_])")


def _text(value: object) -> str:
    """Flags of a dict count unless they are off."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        # JSON can hold half a surrogate pair, UTF-8 cannot.
        return value.strip().encode(errors="replace").decode()
    if isinstance(value, tuple):  # of a map
        return _flag(*value)
    if isinstance(value, list):
        return ", ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return ", ".join(filter(None, starmap(_flag, value.items())))
    return not_understood(repr(value)[:20])


def _flag(name: object, value: object) -> str:
    if value is True or value == 1:
        return str(name)
    if isinstance(value, str) and _OFF.fullmatch(value):
        return ""
    said = _text(value) if value else ""
    return f"{name}: {said}" if said or value == "" else ""
