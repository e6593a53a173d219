"""The examples in docstrings of the functions that users import are true."""

import doctest
import importlib

import pytest

MODULES = (
    "trainer.config",
    "trainer.data.crops",
    "trainer.data.hashed_random",
    "trainer.data.patch_masks",
    "trainer.model_config",
    "trainer.step.losses",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    n_failed, n_tried = doctest.testmod(importlib.import_module(name))
    assert (n_failed, n_tried > 0) == (0, True)
