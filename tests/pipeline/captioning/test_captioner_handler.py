"""Captioners that a recipe names, in the project and outside of it."""

import dataclasses

import pytest

from examples.captioner import Brightness
from pipeline.captioning import captioner_handler
from pipeline.config.captions import Granularity

OWN = Granularity("bright", "127", captioner="examples.captioner:Brightness")


def test_a_class_of_another_module_is_loaded_and_checked():
    captioner_handler.check(OWN)
    captioner_handler.check_package(OWN)
    assert isinstance(captioner_handler.load_captioner(OWN), Brightness)


def test_its_own_check_refuses_settings():
    with pytest.raises(ValueError, match="checkpoint='x': expected the brightness"):
        captioner_handler.check(dataclasses.replace(OWN, checkpoint="x"))


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        ("examples.captioners:Brightness", "expected a module 'examples.captioners'"),
        ("examples.captioner:Bright", "in 'examples.captioner', found no Bright"),
        ("examples.captioner:dataclasses", "expected a class with load, prepare_image"),
        ("pathlib:Path", "expected a class with load, .*, found no load"),
    ],
)
def test_a_class_that_is_no_captioner_is_refused_in_one_line(captioner, message):
    granularity = dataclasses.replace(OWN, captioner=captioner)
    for find in (captioner_handler.check, captioner_handler.check_package):
        with pytest.raises(ValueError, match=message) as caught:
            find(granularity)
        assert "\n" not in str(caught.value)
