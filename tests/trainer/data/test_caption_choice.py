import collections

import pytest

from tests.support import tiny_export
from trainer.data import caption_choice, hashed_random

WEIGHTS = {"short": 1.0, "detailed": 3.0}
ONE_EACH = {"short": ("s",), "detailed": ("d",)}


def shares(sample, weights, n=1000):
    """How often each text is drawn for CLS 2."""
    draws = (hashed_random.uniforms(2, str(i), b"id") for i in range(n))
    counts = collections.Counter(
        caption_choice.choose_texts(sample, d, weights)[1] for d in draws
    )
    return {text: count / n for text, count in counts.items()}


def test_the_first_text_is_the_alt_text_and_the_second_synthetic():
    sample = tiny_export.sample(0, alt_text=" web ", captions={"short": ("made",)})
    assert caption_choice.choose_texts(sample, (0.0, 0.0), WEIGHTS) == ("web", "made")


def test_granularities_are_drawn_by_weight():
    found = shares(tiny_export.sample(0, captions=ONE_EACH), WEIGHTS)
    assert found == pytest.approx({"s": 0.25, "d": 0.75}, abs=0.05)


def test_all_captions_of_a_granularity_are_drawn_alike():
    sample = tiny_export.sample(0, captions={"short": ("a", "b", "c")})
    expected = pytest.approx(dict.fromkeys("abc", 1 / 3), abs=0.05)
    assert shares(sample, WEIGHTS) == expected


def test_a_missing_granularity_leaves_its_part_to_the_others():
    sample = tiny_export.sample(0, captions={"short": ("s",), "detailed": (" ",)})
    assert shares(sample, WEIGHTS) == {"s": 1.0}


def test_a_granularity_without_weight_is_never_drawn():
    sample = tiny_export.sample(0, captions=ONE_EACH)
    assert shares(sample, {"short": 0.1}) == {"s": 1.0}


def test_the_alt_text_may_be_drawn_in_place_of_a_caption():
    sample = tiny_export.sample(0, alt_text="web", captions=ONE_EACH)
    found = shares(sample, {"alt_text": 3.0, "short": 1.0})
    assert found == pytest.approx({"web": 0.75, "s": 0.25}, abs=0.05)
    silent = tiny_export.sample(0, alt_text=" ", captions=ONE_EACH)
    assert shares(silent, {"alt_text": 3.0, "short": 1.0}) == {"s": 1.0}


def test_the_order_of_the_weights_does_not_matter():
    sample = tiny_export.sample(0, captions=ONE_EACH)
    for draw in (0.1, 0.7, 0.8):
        texts = {
            caption_choice.choose_texts(sample, (draw, 0.0), dict(items))
            for items in (WEIGHTS.items(), reversed(WEIGHTS.items()))
        }
        assert len(texts) == 1


def test_without_alt_text_both_tokens_see_the_same_caption():
    sample = tiny_export.sample(0, alt_text="  ", captions={"short": ("a", "b")})
    for draw in (0.0, 0.9):
        first, second = caption_choice.choose_texts(sample, (0.5, draw), WEIGHTS)
        assert first == second == "ab"[draw > 0.5]


@pytest.mark.parametrize("weights", [WEIGHTS, {}])
def test_without_captions_both_tokens_see_the_alt_text(weights):
    sample = tiny_export.sample(0, alt_text="web", captions={"other": ("x",)})
    assert caption_choice.choose_texts(sample, (0.5, 0.5), weights) == ("web", "web")


def test_a_sample_without_any_text_is_an_error():
    sample = tiny_export.sample(0, alt_text="", captions={"other": ("x",)})
    with pytest.raises(ValueError, match=r"neither alt text .* short, detailed"):
        caption_choice.choose_texts(sample, (0.5, 0.5), WEIGHTS)
