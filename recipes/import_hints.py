"""Where a name is that a recipe imports from another module of this project."""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[1]  # of the packages
PACKAGES = ("pipeline", "recipes", "trainer")


def import_hint(error: BaseException, file: str, line: int) -> str:
    """Returns "; NAME is in MODULE" for names of a failed import; else "".

    Args:
      error: what the import statement raised.
      file: the Python file with that statement.
      line: where the statement is in it, from 1.
    """
    if not isinstance(error, ImportError) or isinstance(error.__cause__, ImportError):
        return ""
    tree = ast.parse(pathlib.Path(file).read_bytes())
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module)
        if node.lineno <= line <= (node.end_lineno or node.lineno)
        for alias in node.names
    ]
    places = [f"{name} is in {' and '.join(_definitions(name))}" for name in names]
    return "".join(f"; {place}" for place in places if not place.endswith(" is in "))


def _is_ours(module: str | None) -> bool:
    return (module or "").split(".")[0] in PACKAGES


def _definitions(name: str) -> list[str]:
    """The modules that define a class, a function or a constant."""
    definition = re.compile(
        rf"^(?:class|def) {name}\b|^{name}\b[^=\n]*= ", re.MULTILINE
    )
    paths = [path for package in PACKAGES for path in (_ROOT / package).rglob("*.py")]
    return sorted(
        ".".join(path.relative_to(_ROOT).with_suffix("").parts)
        for path in paths
        if definition.search(path.read_text(encoding="utf-8"))
    )
