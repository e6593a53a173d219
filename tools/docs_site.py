"""Hook of MkDocs: pages lie where the repository has them, so that links hold in both.

What is made of the code: the page of configuration fields, and tables in place of
`<!-- fields of MODULE.CLASS -->` and `<!-- values of MODULE.CLASS -->`.
"""

import pathlib
import pydoc
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools import config_reference

ROOT = pathlib.Path(__file__).parent.parent
PATTERNS = ("*.md", "docs/**/*.md", "docs/images/*", "benchmarks/results/*.md")
MARK = re.compile("<!-- (fields|values) of ([A-Za-z_.]+) -->")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The pages of the repository in place of those of `docs/` alone."""
    of_theme = [file for file in files if not file.is_documentation_page()]
    pages = [
        File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
        for pattern in PATTERNS
        for path in sorted(ROOT.glob(pattern))
    ]
    reference = File.generated(
        config, "docs/configuration.md", content=config_reference.reference()
    )
    return Files([*of_theme, *pages, reference])


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Puts tables in the place of their marks."""
    del page, config, files
    return MARK.sub(_table, markdown)


def _table(found: re.Match[str]) -> str:
    kind = pydoc.locate(found[2])
    if not isinstance(kind, type):
        raise ValueError(f"{found[0]}: expected the name of a class")
    rows = {"fields": config_reference.columns, "values": config_reference.values}
    return "\n".join(rows[found[1]](kind))
