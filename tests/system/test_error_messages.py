"""Every error message that a user can meet says what was expected; a test names it.

Messages are found in the code: texts with the word "expected", which all messages have,
and settings that a check names. A test names a message if some text of the tests has a
phrase of it: three words in a row, or two words around a value.
"""

import ast
import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
GAP = "\0"  # where a message has a value
_CHECKS = ("expect", "expect_cosine", "expect_choice", "_expect_cap", "require")
_CHECKS += ("_require_positive", "self._require")

# Named by no test, each for a reason.
EXCUSED = {
    "resampling=\0: expected '' of \0": "needs PyTorch, and such a processor",
}
_NAME = re.compile(r"(?:[\w\0]+\.)*(\w+)(?:=\0.*)?")  # of a field, as checks have it


@dataclasses.dataclass(frozen=True)
class Message:
    place: str
    text: str

    def is_tested(self) -> bool:
        """Whether tests have a phrase of it."""
        phrases = list(self._phrases())
        plain = (f" {' '.join(phrase)} " for phrase in phrases if GAP not in phrase)
        return any(map(texts_of_tests().__contains__, plain)) or any(
            re.search(_pattern(phrase), texts_of_tests())
            for phrase in phrases
            if GAP in phrase
        )

    def _phrases(self) -> Iterator[list[str]]:
        """Three words in a row, or two around a value."""
        tokens = _words(self.text)
        n_words = len(tokens) - tokens.count(GAP)
        for start, end in itertools.combinations(range(len(tokens) + 1), 2):
            phrase = tokens[start:end]
            n_needed = min(n_words, 2 if GAP in phrase[1:-1] else 3)
            is_trimmed = GAP not in (phrase[0], phrase[-1])
            if is_trimmed and len(phrase) - phrase.count(GAP) == n_needed:
                yield phrase


def _words(text: str) -> list[str]:
    """Words and gaps of a text, without punctuation; neighboring gaps are one."""
    return re.findall(rf"\w+|{GAP}", re.sub(rf"{GAP}(\W*{GAP})+", GAP, text))


def _pattern(phrase: list[str]) -> str:
    return " ".join(phrase).replace(f" {GAP} ", " (?:.{1,80}? )?")


def messages() -> Iterator[Message]:
    for path, tree in _modules():
        documented = {id(text) for text in _docstrings(tree)}
        inside: set[int] = set()  # of a longer text
        for node in ast.walk(tree):
            text = text_of(node)
            if not text or id(node) in documented | inside:
                continue
            inside |= {id(child) for child in ast.walk(node)}
            if re.search(r"\bexpected\b", text):
                yield Message(f"{path}:{getattr(node, 'lineno', 0)}", text)


def settings() -> Iterator[tuple[str, str]]:
    """Module with class, and the name of a field that one of its checks names."""
    for path, tree in _modules():
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            assigned = (node for node in kind.body if isinstance(node, ast.AnnAssign))
            fields = {ast.unparse(node.target) for node in assigned}
            for method in (n for n in kind.body if isinstance(n, ast.FunctionDef)):
                if set(_CHECKS) & set(_called(method)):
                    found = filter(None, map(_NAME.fullmatch, _texts(method)))
                    names = fields & {match[1] for match in found}
                    yield from ((f"{path} {kind.name}", name) for name in names)


def _modules() -> Iterator[tuple[pathlib.Path, ast.Module]]:
    for package in ("pipeline", "trainer"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def _called(node: ast.AST) -> Iterator[str]:
    calls = (one for one in ast.walk(node) if isinstance(one, ast.Call))
    return (ast.unparse(call.func) for call in calls)


def _texts(node: ast.AST) -> Iterator[str]:
    return map(text_of, ast.walk(node))


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = next(iter(node.body), None)
            yield from [first.value] if isinstance(first, ast.Expr) else []


def text_of(node: ast.AST) -> str:
    """A text, with a gap for every value in it; "" if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    return ""


@functools.cache
def texts_of_tests() -> str:
    """Words of all texts of all tests but this one."""
    paths = set((ROOT / "tests").rglob("*.py")) - {pathlib.Path(__file__)}
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text())))
    texts = {re.sub(r"\\[a-z]", " ", text_of(node)) for node in nodes}  # of patterns
    rows = (_words(text) for text in sorted(texts))
    return "\n".join(f" {' '.join(words)} " for words in rows if len(words) > 1)


def test_every_message_is_named_by_a_test():
    found = list(messages())
    assert len(found) > 200
    unnamed = [m for m in found if m.text not in EXCUSED and not m.is_tested()]
    assert unnamed == []
    assert {m.text for m in found} >= EXCUSED.keys()


def test_every_setting_with_a_bound_is_named_by_a_test():
    found = list(settings())
    assert len(found) > 100
    unnamed = [
        (place, name)
        for place, name in found
        if not re.search(rf"\b{name} (?:.{{1,60}}? )?expected\b", texts_of_tests())
    ]
    assert unnamed == []


def test_a_message_that_no_test_names_is_noticed():
    nowhere = "gh" + "oti"  # put together here, so that it stands in no text
    assert not Message("a.py:1", f"{nowhere}=\0: expected {nowhere}").is_tested()
    assert Message("a.py:1", "n_samples=\0: expected at least 1").is_tested()
