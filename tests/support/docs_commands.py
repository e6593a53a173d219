"""Finds the commands in pages of the documentation and splits them as a shell does."""

import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
_TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = (*(ROOT / name for name in _TOP), *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HERE_DOCUMENT = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)


def fenced(page: pathlib.Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block of a page, in order."""
    return _BLOCK.findall(page.read_text())


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """Fenced code of a page in one language."""
    return [text for found, text in fenced(page) if found == language]


def commands(block: str) -> Iterator[list[str]]:
    """Yields each command as words, without assignments; quoted commands too."""
    text = _HERE_DOCUMENT.sub("", block).replace("\\\n", " ")
    for line in text.splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True) if _is_closed(part) else []
            while words and re.match("[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
        yield from _quoted(line)


def _is_closed(text: str) -> bool:
    """Whether no quotation mark is left open."""
    return text.count("'") % 2 == 0 and text.count('"') % 2 == 0


def _quoted(line: str) -> Iterator[list[str]]:
    """A remote command within the line."""
    if not _is_closed(line):
        return
    for word in shlex.split(line, comments=True):
        if " -m trainer" in word:
            yield from commands(word)
