import dataclasses

import pytest

from pipeline.config import prompts
from pipeline.config.captions import Granularity

COCO = Granularity("coco", "google/paligemma-3b-ft-cococap-224", "caption en")


def named(name: str, prompt: str) -> Granularity:
    return dataclasses.replace(COCO, name=name, prompt=prompt)


def test_fields_are_filled_in():
    template = "{{1}} {alt_text}; {caption:coco}|{caption:short}"
    captions = {"coco": "a cat on a mat", "short": "cat"}
    prompt = prompts.filled(template, "my {cat}", captions)
    assert prompt == "{1} my {cat}; a cat on a mat|cat"
    assert prompts.upstream(template) == ("coco", "short")


@pytest.mark.parametrize(
    ("length", "shortened"),
    [
        (3, "two"),
        (4, "two"),
        (6, "two"),
        (7, "two red"),
        (12, "two red cats"),
        (2, "tw"),
    ],
)
def test_alt_text_is_shortened_at_a_word(length, shortened):
    template = f"{{alt_text:{length}}}"
    assert prompts.filled(template, "two red cats", {}) == shortened


def test_the_place_of_the_image_cannot_be_faked_by_alt_text():
    prompt = prompts.filled("a{image}b{alt_text}", prompts.IMAGE, {})
    assert prompt == f"a{prompts.IMAGE}bimage"
    assert prompts.has_image("a{image}b")
    assert not prompts.has_image("a {alt_text}")


def test_a_caption_that_is_not_there_is_missed():
    with pytest.raises(KeyError):
        prompts.filled("{caption:coco}", "", {})


@pytest.mark.parametrize(
    "template",
    ["{alt}", "{caption}", "{image:3}", "{alt_text:x}", "{alt_text!r}", "{}", "{", "}"],
)
def test_other_fields_are_refused(template):
    with pytest.raises(ValueError, match=r"expected \{alt_text\}"):
        prompts.upstream(template)


def test_granularities_come_after_those_that_they_need():
    fused = named("fused", "{caption:coco} {caption:other}")
    other, last = named("other", "describe en"), named("last", "{caption:fused}")
    levels = prompts.levels([last, fused, COCO, other])
    assert levels == [[COCO, other], [fused], [last]]


@pytest.mark.parametrize(
    ("granularities", "expected"),
    [
        ([named("a", "{caption:b}"), COCO], r"\{caption:b\}: expected one of coco"),
        ([named("a", "{caption:a}")], "need each other's captions: expected no cycle"),
        ([named("a", "{caption:b}"), named("b", "{caption:a}")], "granularities a, b"),
    ],
)
def test_captions_that_cannot_be_had_are_refused(granularities, expected):
    with pytest.raises(ValueError, match=expected):
        prompts.levels(granularities)


@pytest.mark.parametrize(
    ("checkpoint", "prompt", "is_doubted"),
    [
        ("google/paligemma-3b-pt-224", "describe en", False),
        ("google/paligemma-3b-pt-224", "what is it", True),
        ("google/paligemma2-3b-mix-448", "describe en", True),
        ("google/paligemma2-3b-mix-448", "caption en", False),
        ("google/paligemma2-3b-mix-448", "describe this image in detail", False),
        ("/models/paligemma2-3b-ft-docci-448/", "cap en", True),
        ("/models/mine", "describe en", False),
    ],
)
def test_prompts_that_a_family_does_not_know_are_doubted(
    checkpoint, prompt, is_doubted
):
    granularity = Granularity("x", checkpoint, prompt)
    assert (prompts.doubt(granularity) is not None) == is_doubted
