"""Names of files and classes made safe to look at, in a picture or on a page."""


def visible(text: str, max_chars: int = 80) -> str:
    """The text with what does not print spelled out as `[U+202E]`, cut to a length.

    Those are controls, ends of lines, marks of direction and the like; white space is
    plain spaces.
    """
    shown = "".join(
        one if one.isprintable() else f"[U+{ord(one):04X}]" for one in text[:max_chars]
    )
    is_whole = len(shown) <= max_chars and len(text) <= max_chars
    return shown if is_whole else shown[: max_chars - 1] + "…"
