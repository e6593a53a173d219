"""Patterns of paths: `?`, `*` and `[...]` within a name, `**` for any folders."""

import re

_MAGIC = re.compile(r"[*?\[]")


def has_wildcard(text: str) -> bool:
    """Whether a text is a pattern, not the name of one file."""
    return _MAGIC.search(text) is not None


def fixed_folder(pattern: str) -> str:
    """The folder that all matches are in, as far as it has no wildcard."""
    found = _MAGIC.search(pattern)
    return pattern[: found.start()].rpartition("/")[0] if found else pattern


def translate(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern; `[[]` is a bracket, `[!a]` is not an `a`.

    >>> bool(translate("a/*.tar").fullmatch("a/b.tar"))
    True
    >>> bool(translate("a/*.tar").fullmatch("a/b/c.tar"))
    False
    >>> bool(translate("a/**/c.tar").fullmatch("a/c.tar"))
    True
    """
    parts, position = [], 0
    while position < len(pattern):
        part, position = _translate_one(pattern, position)
        parts.append(part)
    return re.compile(f"(?s:{''.join(parts)})")


def _translate_one(pattern: str, start: int) -> tuple[str, int]:
    """The expression of what begins at `start`, and where the rest begins."""
    if pattern.startswith("**/", start):
        return "(?:.*/)?", start + 3
    if pattern.startswith("**", start):
        return ".*", start + 2
    letter = pattern[start]
    if letter == "*":
        return "[^/]*", start + 1
    if letter == "?":
        return "[^/]", start + 1
    end = pattern.find("]", start + 2) if letter == "[" else -1
    if end < 0:
        return re.escape(letter), start + 1
    inside = pattern[start + 1 : end]
    negation = "^" if inside[0] in "!^" else ""
    letters = re.sub(r"([\\\[\]&~|^])", r"\\\1", inside[len(negation) :])
    return f"[{negation}{letters}]", end + 1
