"""Makes text from the web safe to print: nothing in it moves, hides or runs.

Pages escape markup themselves. This handles what escaping leaves: terminal codes, marks
that change the direction of writing, and texts of a megabyte.
"""

import re

# Controls except tab and line feed, direction marks, line and paragraph separators,
# invisible operators, tags, and halves of characters.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, max_chars: int = 300) -> str:
    """Returns the text with hidden characters spelled out as `[U+202E]`, and cut.

    White space becomes single spaces, so the text stays on one line.
    """
    start = " ".join(text[: 4 * max_chars].split(None))
    shown = _HIDDEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", start)
    is_whole = len(shown) <= max_chars and len(text) <= 4 * max_chars
    return shown if is_whole else shown[: max_chars - 1] + "…"
