"""How large a part may be and what it must say of itself: limits that hold for all."""

import ast
import io
import pathlib
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("pipeline", "trainer", "recipes")
MAX_FUNCTION_LINES = 50
MAX_MODULE_LINES = 400
MAX_BROAD_EXCEPTS = 4
MIN_DOCUMENTED_SHARE = 0.95
MIN_TEST_LINES_PER_LINE = 0.9
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: str) -> list[pathlib.Path]:
    return sorted(path for name in folders for path in (ROOT / name).rglob("*.py"))


def n_lines(path: pathlib.Path) -> int:
    return len(path.read_text().splitlines())


def n_code_lines(path: pathlib.Path) -> int:
    """Lines with code: without blank lines, comments and docstrings."""
    text = path.read_text()
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | Function)
        if is_documented and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def where(path: pathlib.Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def public(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Classes and functions without a leading underscore, and methods of such classes.

    A method that overrides one of a base class is documented there.
    """
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                methods = [one for one in node.body if isinstance(one, Function)]
                yield from (one for one in methods if not one.name.startswith("_"))


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = ast.walk(handler.type) if handler.type else ()
    names = {node.id for node in kinds if isinstance(node, ast.Name)}
    return handler.type is None or bool({"Exception", "BaseException"} & names)


def test_no_module_is_too_long():
    lengths = {path: n_lines(path) for path in files(*PROGRAMS)}
    assert [f"{p}: {n}" for p, n in lengths.items() if n > MAX_MODULE_LINES] == []


def test_no_function_is_too_long():
    too_long = [
        where(path, node)
        for path in files(*PROGRAMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_every_module_says_what_it_is():
    paths = files(*PROGRAMS, "tools", "benchmarks", "curation_configs")
    silent = [
        path for path in paths if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_public_names_are_documented():
    name_to_is_documented = {
        f"{where(path, node)} {node.name}": bool(ast.get_docstring(node))
        for path in files(*PROGRAMS)
        for node in public(ast.parse(path.read_text()))
    }
    silent = [name for name, is_said in name_to_is_documented.items() if not is_said]
    share = 1 - len(silent) / len(name_to_is_documented)
    assert share >= MIN_DOCUMENTED_SHARE, "\n".join(silent)


def test_a_broad_except_is_rare_and_has_its_reason():
    broad = [
        (path, node)
        for path in files(*PROGRAMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert len(broad) <= MAX_BROAD_EXCEPTS, [where(*one) for one in broad]
    for path, node in broad:
        lines = path.read_text().splitlines()[node.lineno - 2 : node.lineno + 1]
        assert any("#" in line for line in lines), where(path, node)


def test_there_are_enough_tests():
    code = sum(map(n_code_lines, files(*PROGRAMS)))
    assert sum(map(n_code_lines, files("tests"))) >= MIN_TEST_LINES_PER_LINE * code
