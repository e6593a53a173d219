"""Hook of MkDocs: builds the site from the repository as it lies.

Pages keep their paths, so that links hold in the repository and on the site. Some parts
are generated from the code: the page of configuration fields, the API reference, and
tables in place of the marks `<!-- fields of MODULE.CLASS -->` and
`<!-- values of MODULE.CLASS -->`.
"""

import pathlib
import pydoc
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools import config_reference

ROOT = pathlib.Path(__file__).parent.parent
PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "docs/images/*",
    "benchmarks/results/*.md",
    "CITATION.cff",
    "LICENSE",
    "examples/*.py",
)
MARK = re.compile("<!-- (fields|values) of ([A-Za-z_.]+) -->")
# Page of the API reference to its title, and to modules and packages.
API = {
    "records": ("Records", ("pipeline/records.py",)),
    "curation_recipes": ("Curation recipes", ("pipeline/config",)),
    "drop_rules": (
        "Drop rules",
        ("pipeline/selection/rules.py",),
    ),
    "images": ("Image decoder", ("pipeline/images/decoder.py",)),
    "trainer_config": (
        "Training recipes",
        (
            "trainer/config.py",
            "trainer/model_config.py",
            "trainer/objective_config.py",
            "trainer/optimizer_config.py",
            "trainer/evaluation_config.py",
        ),
    ),
    "losses": (
        "Losses",
        (
            "trainer/step/losses.py",
            "trainer/step/prototype_loss.py",
            "trainer/step/terms",
        ),
    ),
    "trainer_data": ("Training data", ("trainer/data",)),
    "recipes": ("Recipes as files", ("recipes",)),
}

_API_PURPOSE = """\
Look up signatures, shapes, units and errors of the public names, as the code has them.
[Configuration](../configuration.md) explains each field of a recipe."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Replaces the pages of `docs/` by those of the whole repository."""
    of_theme = [file for file in files if not file.is_documentation_page()]
    pages = [
        File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
        for pattern in PATTERNS
        for path in sorted(ROOT.glob(pattern))
    ]
    generated = {"docs/configuration.md": config_reference.reference()}
    generated |= {f"docs/api/{name}.md": api_page(name) for name in API}
    made = [
        File.generated(config, uri, content=text) for uri, text in generated.items()
    ]
    return Files([*of_theme, *pages, *made])


def api_page(name: str) -> str:
    """Markdown that mkdocstrings expands to the reference of some modules."""
    title, paths = API[name]
    parts = [f"# {title}: code reference", _API_PURPOSE]
    parts += [f"::: {module}" for path in paths for module in _modules(ROOT / path)]
    return "\n\n".join(parts)


def _modules(path: pathlib.Path) -> Iterator[str]:
    """Dotted names of a module, or of a package's modules."""
    files = [path] if path.suffix else sorted(path.glob("*.py"))
    for file in files:
        if file.stem != "__init__":
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts)


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Replaces marks by tables."""
    del page, config, files
    return MARK.sub(_table, markdown)


def _table(found: re.Match[str]) -> str:
    kind = pydoc.locate(found[2])
    if not isinstance(kind, type):
        raise ValueError(f"{found[0]}: expected the name of a class")
    rows = {"fields": config_reference.columns, "values": config_reference.values}
    return "\n".join(rows[found[1]](kind))
