"""Text of the web made safe to look at: nothing in it moves, hides or runs.

A page escapes markup by itself; this is for what escaping leaves: terminal codes,
marks that turn the direction of writing, and texts of a megabyte.
"""

import re

# Controls but tab and line feed, marks of direction, separators of lines and
# paragraphs, invisible operators, tags, and halves of characters.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, max_chars: int = 300) -> str:
    """The text with hidden characters spelled out as `[U+202E]`, cut to a length.

    White space becomes single spaces, so that the text stays on its line.
    """
    start = " ".join(text[: 4 * max_chars].split(None))
    shown = _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", start)
    is_whole = len(shown) <= max_chars and len(text) <= 4 * max_chars
    return shown if is_whole else shown[: max_chars - 1] + "…"
