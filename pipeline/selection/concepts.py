"""Concepts that alt texts name: words and phrases of a list.

In: a text file with one concept per line, such as a visual dictionary or the titles of
an encyclopedia. Out: for each text, the numbers of the concepts that occur in it word
for word. Case and punctuation are ignored; in scripts without spaces each character is
a word.

>>> concepts = Concepts(["dog", "polar bear", "bear"])
>>> [concepts.names[number] for number in concepts.find("Polar bear, with a dog!")]
['dog', 'polar bear', 'bear']
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.selection.rules import SPACELESS
from pipeline.storage import files

_WORD = re.compile(f"[{SPACELESS}]|[^\\W_{SPACELESS}]+")
_BEGINNING = -1  # in place of a number: the beginning of a longer concept


class Concepts:
    """A list of concepts, and a search whose time does not grow with the list."""

    def __init__(self, names: Iterable[str]) -> None:
        """Names with the same words are one concept; each has at least one word."""
        self.names: list[str] = []
        self._phrase_to_number: dict[str, int] = {}
        for name in names:
            self._add(name)

    @classmethod
    def load(cls, path: str) -> "Concepts":
        """Reads a list of concepts.

        Raises:
          ValueError: on a line without a word, or if there is no line.
        """
        lines = _lines(path)
        for number, line in enumerate(lines, start=1):
            if line and not _words(line):
                raise ValueError(f"{path}:{number}: {line[:80]!r}: expected a word")
        concepts = cls(line for line in lines if line)
        if not concepts.names:
            raise ValueError(f"concepts={path!r}: expected at least one line")
        return concepts

    def find(self, text: str) -> list[int]:
        """The numbers of the concepts that occur in a text, ascending."""
        words = _words(text)
        found = {n for start in range(len(words)) for n in self._at(words, start)}
        return sorted(found - {_BEGINNING})

    def _at(self, words: Sequence[str], start: int) -> Iterator[int]:
        """Yields the concepts that begin at a word, while a longer one is possible."""
        phrase, end = words[start], start + 1
        while (number := self._phrase_to_number.get(phrase)) is not None:
            yield number
            if end == len(words):
                return
            phrase, end = f"{phrase} {words[end]}", end + 1

    def _add(self, name: str) -> None:
        words = _words(name)
        for end in range(1, len(words)):
            self._phrase_to_number.setdefault(" ".join(words[:end]), _BEGINNING)
        phrase = " ".join(words)
        if self._phrase_to_number.get(phrase, _BEGINNING) == _BEGINNING:
            self._phrase_to_number[phrase] = len(self.names)
            self.names.append(name)


def _words(text: str) -> Sequence[str]:
    return _WORD.findall(text.casefold())


def _lines(path: str) -> list[str]:
    try:
        text = files.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"concepts={path!r}: expected UTF-8: {error}") from error
    return [line.strip() for line in text.split("\n")]
