"""Prints a reference of every configuration field, generated from the code.

    python -m tools.config_reference > configuration.md

Type and default are those of the class. The description of a field is the comment next
to it or above it, or else the docstring of its class or of its type.
"""

import ast
import dataclasses
import enum
import functools
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.config.curation import CurationConfig
from pipeline.selection import rules
from trainer.config import TrainConfig

# Values of `drop_rules`, whose type names no class.
RULES = (
    rules.FewWords,
    rules.BoilerplateAltText,
    rules.SmallImage,
    rules.ExtremeAspect,
)

_HEAD = """\
# Configuration

Look up every field of a recipe: its type, its default (**required** if there is none),
its meaning, and where the default comes from. `--set a.b=value` on the command line
changes a field of a recipe; `--set granularities.0.dtype=bfloat16` changes a field of a
list item. Generated from the code by `python -m tools.config_reference`.
"""


@dataclasses.dataclass(frozen=True)
class Field:
    """One row of a table."""

    name: str
    type: str
    default: str  # Python; "" if the field is required
    meaning: str  # "" if the code does not say


def main() -> None:
    print(reference(), end="")


def reference() -> str:
    """Returns the page, in Markdown."""
    curation = [*configurations(CurationConfig), *RULES]
    training = [kind for kind in configurations(TrainConfig) if kind not in curation]
    parts = [
        _HEAD,
        "## Curation\n",
        "Recipes in `curation_configs/` return a `CurationConfig`.\n",
        *map(_section, curation),
        "## Training\n",
        "Recipes in `trainer/configs/` return a `TrainConfig`.\n",
        *map(_section, training),
    ]
    return "\n".join(parts)


def configurations(root: type) -> list[type]:
    """Returns `root` and all dataclasses and enumerations that its fields name."""
    found = [root]
    for kind in found:
        hints = _hints(kind).values()
        found += [
            other
            for other in dict.fromkeys(c for hint in hints for c in _classes(hint))
            if other not in found
        ]
    return found


def fields(kind: type) -> list[Field]:
    """Returns the fields of a dataclass, in the order of its constructor."""
    name_to_field = {
        field.name: field
        for owner in reversed(kind.__mro__)
        if dataclasses.is_dataclass(owner)
        for field in _own_fields(owner)
    }
    return [
        dataclasses.replace(
            field, meaning=field.meaning or _from_docs(kind, field.name)
        )
        for field in name_to_field.values()
    ]


def _from_docs(kind: type, name: str) -> str:
    """Describes a field by the docstring of its class or of its type."""
    if f"`{name}`" in _doc(kind):
        return "see above"
    docs = [_doc(one) for one in _classes(_hints(kind)[name])]
    return docs[0].split("\n\n")[0].replace("\n", " ") if len(docs) == 1 else ""


def _hints(kind: type) -> Mapping[str, typing.Any]:
    is_enum = isinstance(kind, enum.EnumType)
    return {} if is_enum else typing.get_type_hints(kind)


def _classes(hint: typing.Any) -> Iterator[type]:
    if isinstance(hint, type) and (
        dataclasses.is_dataclass(hint) or isinstance(hint, enum.EnumType)
    ):
        yield hint
    if typing.get_origin(hint) is Callable:
        return  # a function is a value of a recipe; its arguments are not
    for argument in typing.get_args(hint):
        yield from _classes(argument)


@functools.cache
def _own_fields(kind: type) -> Sequence[Field]:
    """Returns the fields that the body of the class itself defines."""
    source = textwrap.dedent(inspect.getsource(kind))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    comments = _comments(source)
    return [
        Field(
            name=node.target.id,
            type=ast.unparse(node.annotation),
            default=_default(node.value),
            meaning=_meaning(comments, node),
        )
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _default(value: ast.expr | None) -> str:
    """The default as Python, without the call of `dataclasses.field`."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "dataclasses.field":
        options = {keyword.arg: keyword.value for keyword in value.keywords}
        if factory := options.get("default_factory"):
            return (
                "{}" if ast.unparse(factory) == "dict" else f"{ast.unparse(factory)}()"
            )
        return ast.unparse(options["default"])
    return "" if value is None else ast.unparse(value)


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Maps a line to its comment, and to whether nothing else is on the line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (
            token.string.lstrip("# ").rstrip(),
            token.line.lstrip().startswith("#"),
        )
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _meaning(comments: Mapping[int, tuple[str, bool]], node: ast.stmt) -> str:
    """The comments right above a statement and on its lines."""
    first = node.lineno
    while (first - 1) in comments and comments[first - 1][1]:
        first -= 1
    last = node.end_lineno or node.lineno
    lines = [comments[line][0] for line in range(first, last + 1) if line in comments]
    return " ".join(lines)


def columns(kind: type) -> list[str]:
    """The fields of a record as rows of a table."""
    rows = [
        f"| `{field.name}` | {_code(field.type)} | {_escaped(field.meaning)} |"
        for field in fields(kind)
    ]
    return ["| column | type | meaning |", "| --- | --- | --- |", *rows]


def _section(kind: type) -> str:
    """A class with its docstring and its fields or values."""
    place = f"`{kind.__module__.replace('.', '/')}.py`"
    rows = values(kind) if isinstance(kind, enum.EnumType) else _field_rows(kind)
    lines = [f"### {kind.__name__}", "", f"{_doc(kind)}\n" if _doc(kind) else "", *rows]
    return "\n".join([*lines, "", f"Defined in {place}.", ""])


def _doc(kind: type) -> str:
    """The docstring of the class itself, not one that dataclasses generate."""
    doc = kind.__dict__.get("__doc__") or ""
    return "" if doc.startswith(f"{kind.__name__}(") else inspect.cleandoc(doc)


def _field_rows(kind: type) -> list[str]:
    if not (found := fields(kind)):
        return ["It has no fields."]
    rows = [
        f"| `{field.name}` | {_linked(kind, field)} | "
        f"{_code(field.default) if field.default else '**required**'} | "
        f"{_escaped(field.meaning)} |"
        for field in found
    ]
    return ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows]


def values(kind: type) -> list[str]:
    """The members of an enumeration as rows of a table."""
    source = textwrap.dedent(inspect.getsource(kind))
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    comments = _comments(source)
    rows = [
        f"| `{ast.literal_eval(node.value)}` | {_escaped(_meaning(comments, node))} |"
        for node in definition.body
        if isinstance(node, ast.Assign)
    ]
    return ["| value | meaning |", "| --- | --- |", *rows]


def _linked(kind: type, field: Field) -> str:
    """The type, with links to the classes that it names."""
    hint = _hints(kind)[field.name]
    links = [f"[{c.__name__}](#{c.__name__.lower()})" for c in _classes(hint)]
    if not links:
        return _code(field.type)
    links += ["`None`"] if type(None) in typing.get_args(hint) else []
    several = "tuple of " if typing.get_origin(hint) is tuple else ""
    return several + " or ".join(dict.fromkeys(links))


def _code(text: str) -> str:
    return f"`{_escaped(text)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
