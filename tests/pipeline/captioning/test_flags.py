"""Each flag on captions that have it and captions that do not."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioning.flags import (
    FLAG_TO_RULE,
    CaptionFacts,
    flags_of,
    normalize_text,
    repetition,
    words,
)
from pipeline.config.captions import CaptionQuality, Granularity
from pipeline.config.curation import CurationConfig, EncoderConfig, ExportConfig
from pipeline.config.prompts import IMAGE
from pipeline.config.selection import SelectionConfig
from pipeline.records import CaptionFlag, FinishReason, Language

GOOD = CaptionFacts(
    text="A brown dog runs after a red ball in the grass.",
    finish_reason=FinishReason.STOP,
    mean_logprob=-0.4,
    prompt="caption en",
    n_words=(3, 25),
    alt_text="our holidays",
    others=("dog",),
    n_images=0,
    language=Language("en", 0.9),
    alignment_score=0.3,
)
QUALITY = CaptionQuality(
    max_identical=2,
    min_mean_logprob=-1.0,
    measure_alignment=True,
    min_alignment_score=0.1,
)


def flags(quality=QUALITY, **changes):
    return flags_of(dataclasses.replace(GOOD, **changes), quality)


def test_a_good_caption_has_no_flag():
    assert flags() == ()


def test_every_flag_has_a_rule():
    assert set(FLAG_TO_RULE) == set(CaptionFlag)


# Seen from a tiny captioner.
LOOP = "a white circle circle next to a white white white white white white white heart"
# By a person; of 10,854 the one that repeats most.
BY_A_PERSON = (
    "A woman in a black and blue outfit is dancing in the street with a woman in a "
    "black and red outfit."
)


@pytest.mark.parametrize(
    ("flag", "bad", "good"),
    [
        (
            CaptionFlag.NO_END,
            {"finish_reason": FinishReason.LENGTH},
            {"finish_reason": FinishReason.IMPORTED},
        ),
        (CaptionFlag.REPETITION, {"text": LOOP}, {"text": BY_A_PERSON}),
        (
            CaptionFlag.REPETITION,
            {"text": "a dog, a dog, a dog, a dog"},
            {"text": "a big, big, big dog"},
        ),
        (CaptionFlag.LENGTH, {"text": "a dog"}, {"text": "a brown dog"}),
        (CaptionFlag.LENGTH, {"n_words": (3, 10)}, {"n_words": (11, 11)}),
        (
            CaptionFlag.LOCATION_TOKENS,
            {"text": "a brown dog <loc0123><loc1023>"},
            {"text": "a brown <location> sign"},
        ),
        (
            CaptionFlag.LOCATION_TOKENS,
            {"text": "a brown dog <seg007>"},
            {"text": "a sign <loc12> on a wall"},
        ),
        (
            CaptionFlag.PROMPT_ECHO,
            {"text": "Caption EN: a brown dog"},
            {"text": "caption endings on a page"},
        ),
        (
            CaptionFlag.PROMPT_ECHO,
            {"prompt": f"Describe it.\n{IMAGE}", "text": "describe it. It barks"},
            {"prompt": IMAGE},
        ),
        (
            CaptionFlag.EQUALS_ALT_TEXT,
            {"alt_text": " a BROWN dog runs after a red\nball in the grass"},
            {"alt_text": "a brown dog runs after a red ball in the gras"},
        ),
        (
            CaptionFlag.EQUALS_OTHER,
            {"others": ("dog", "A brown dog runs after a red ball in the grass")},
            {"others": ()},
        ),
        (CaptionFlag.FREQUENT, {"n_images": 4}, {"n_images": 3}),
        (
            CaptionFlag.LANGUAGE,
            {"language": Language("de", 0.5)},
            {"language": Language("de", 0.49)},
        ),
        (
            CaptionFlag.LANGUAGE,
            {"language": Language("fr", 0.9)},
            {"language": Language("", 0.0)},
        ),
        (
            CaptionFlag.LOW_LOGPROB,
            {"mean_logprob": -1.01},
            {"mean_logprob": -1.0},
        ),
        (
            CaptionFlag.LOW_ALIGNMENT,
            {"alignment_score": 0.09},
            {"alignment_score": 0.1},
        ),
    ],
)
def test_a_flag_is_set_on_the_bad_alone(flag, bad, good):
    assert flags(**bad) == (flag,)
    assert flags(**good) == ()


@pytest.mark.parametrize("text", ["", " \n", "...", "—", '"!"'])
def test_a_text_without_words_is_empty_and_equals_nothing(text):
    found = flags(text=text, alt_text=text, others=(text,))
    assert found == (CaptionFlag.EMPTY, CaptionFlag.LENGTH)


@pytest.mark.parametrize("text", ["x y z", "12 3 4", "\N{BICYCLE} \N{BICYCLE} ok"])
def test_a_text_with_words_is_not_empty(text):
    assert flags(text=text) == ()


def test_flags_come_in_the_order_of_their_names():
    found = flags(text="caption en", finish_reason="length", alignment_score=-1.0)
    assert found == (
        CaptionFlag.NO_END,
        CaptionFlag.LENGTH,
        CaptionFlag.PROMPT_ECHO,
        CaptionFlag.LOW_ALIGNMENT,
    )


def test_what_was_not_measured_has_no_flag():
    assert flags(mean_logprob=math.nan, alignment_score=None) == ()
    assert flags(mean_logprob=math.nan, alignment_score=math.nan) == ()


def test_a_threshold_that_is_not_set_sets_no_flag():
    quality = dataclasses.replace(
        QUALITY, min_mean_logprob=None, min_alignment_score=None
    )
    assert flags(quality, mean_logprob=-9.0, alignment_score=-1.0) == ()


def test_other_languages_can_be_expected():
    quality = dataclasses.replace(QUALITY, languages=("de", "fr"))
    assert flags(quality, language=Language("fr", 0.9)) == ()
    assert flags(quality) == (CaptionFlag.LANGUAGE,)


def test_repetition_counts_sequences_of_four_words():
    # abcd bcda cdab dabc abcd: one of five occurred before.
    assert repetition("abcdabcd") == 1 - 4 / 5
    assert repetition("aaaaaa") == 1 - 1 / 3
    assert repetition("aaa") == 0
    assert repetition("") == 0
    assert repetition("abab", n=2) == pytest.approx(1 / 3)


@given(st.lists(st.integers(0, 3)))
def test_repetition_is_a_share_and_the_same_backwards(items):
    assert 0 <= repetition(items) < 1
    assert repetition(items) == repetition(items[::-1])
    assert repetition(range(len(items))) == 0


def test_words_have_no_punctuation_around_them():
    assert words("“A dog-like life”, he said - (twice)…") == [
        *("a", "dog-like", "life", "he", "said", "twice")
    ]
    assert words("एक छोटा लड़का।") == ["एक", "छोटा", "लड़का"]


@given(st.text(), st.sampled_from(["", ".", " ", "\t", "!?", " ...\n", "。"]))
def test_case_spacing_and_an_end_do_not_matter(text, end):
    assert normalize_text(text + end) == normalize_text(text)
    assert normalize_text("  ".join(text.split(" "))) == normalize_text(text)
    assert normalize_text(text.casefold()) == normalize_text(text)
    assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_other_words_matter():
    assert normalize_text("a dog") != normalize_text("dog")
    assert normalize_text("no. 1") != normalize_text("no 1")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_repetition": 1.5}, "max_repetition=1.5: expected 0 to 1"),
        ({"max_identical": 0}, "max_identical=0: expected at least 1"),
        ({"languages": ()}, r"languages=\(\): expected at least one"),
        ({"languages": ("english",)}, "languages='english': expected codes"),
        ({"languages": "en"}, """languages='en': expected a tuple such as ."en",."""),
        ({"min_foreign_probability": -1}, "expected 0 to 1"),
        ({"min_mean_logprob": 0.5}, "min_mean_logprob=0.5: expected at most 0"),
        ({"min_alignment_score": 0.1}, "expected measure_alignment=True with it"),
        ({"min_alignment_score": 3, "measure_alignment": True}, "a cosine"),
    ],
)
def test_an_invalid_threshold_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        CaptionQuality(**changes)


@pytest.mark.parametrize("n_words", [(3,), (5, 2), (-1, 2), (1, 2, 3)])
def test_a_range_of_words_that_is_none_is_refused(n_words):
    with pytest.raises(ValueError, match=r"expected (2 values|the fewest and)"):
        Granularity("short", "tiny", n_words=n_words)


def test_an_unknown_flag_to_drop_is_refused():
    with pytest.raises(ValueError, match="'no_ende': expected one of no_end, empty"):
        ExportConfig(drop_caption_flags=("no_ende",))


@pytest.mark.parametrize(
    ("flag", "threshold"),
    [("low_logprob", "min_mean_logprob"), ("low_alignment", "min_alignment_score")],
)
def test_a_flag_that_is_never_set_is_not_to_drop(flag, threshold):
    base = CurationConfig(EncoderConfig("tiny"), SelectionConfig())
    export = ExportConfig(drop_caption_flags=(flag,))
    with pytest.raises(ValueError, match=f"expected caption_quality.{threshold}"):
        dataclasses.replace(base, export=export)
    dataclasses.replace(base, export=export, caption_quality=QUALITY)
