"""The examples in docstrings run, and print what stands under them."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for program in ("pipeline", "trainer", "recipes")
    for path in sorted((ROOT / program).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_docstrings_are_true(name):
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    tried = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert tried.attempted
    assert not tried.failed


def test_the_functions_that_users_import_have_examples():
    assert len(WITH_EXAMPLES) >= 12
