import math

import pytest

from pipeline.config.selection import KeepLanguages, SelectionConfig, ShortText
from pipeline.records import Decision
from pipeline.selection import language
from tests.support.score_tables import Row, after_step, make_run

NAN = math.nan


def by_language(tmp_path, languages: KeepLanguages, *rows: Row) -> list[Decision]:
    run = make_run(str(tmp_path), SelectionConfig(), {"web/1": rows})
    return after_step(run, lambda v: language.filter_language(v, run, languages))


def test_language_and_probability_decide(tmp_path):
    decided = by_language(
        tmp_path,
        KeepLanguages(languages=("en", "fr"), min_probability=0.5),
        Row(code="en", probability=0.5),
        Row(code="fr", probability=0.9),
        Row(code="en", probability=0.25),
        Row(code="de", probability=0.75),
        Row(code="", probability=0.0),
    )
    assert [(d.outcome, d.value, d.threshold, d.detail) for d in decided] == [
        ("kept", None, None, ""),
        ("kept", None, None, ""),
        ("language", 0.25, 0.5, "en"),
        ("language", 0.75, 0.0, "de"),
        ("language", 0.0, 0.0, ""),
    ]


def test_a_doubtful_other_language_passes(tmp_path):
    decided = by_language(
        tmp_path,
        KeepLanguages(min_foreign_probability=0.75),
        Row(code="hu", probability=0.5),
        Row(code="de", probability=0.75),
        Row(code="en", probability=0.0),
        Row(code="", probability=0.0),
    )
    assert [(d.outcome, d.threshold) for d in decided] == [
        ("kept", None),
        ("language", 0.75),
        ("kept", None),
        ("kept", None),
    ]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep", ["kept", "kept", "kept", "language", "language"]),
        ("drop", ["language", "language", "language", "language", "language"]),
        ("alignment", ["kept", "language", "language", "language", "language"]),
    ],
)
def test_short_text_follows_its_policy_for_any_detected_language(
    tmp_path, policy, expected
):
    decided = by_language(
        tmp_path,
        KeepLanguages(short_text=ShortText(policy, max_words=2, min_score=0.25)),
        Row("rotes Rad", code="de", score=0.25),
        Row("red bike", code="en", score=0.125),
        Row("bike", code="en", score=NAN),
        Row("ein rotes Rad", code="de", score=0.9),
        Row("一只白色的狗", code="zh", score=0.9),
    )
    assert [decision.outcome for decision in decided] == expected
    measures = [(d.value, d.threshold, d.detail) for d in decided[:3]]
    if policy == "alignment":
        assert measures[1:] == [(0.125, 0.25, "short text"), (None, 0.25, "short text")]
    if policy == "drop":
        assert measures == [(None, None, "short text")] * 3
