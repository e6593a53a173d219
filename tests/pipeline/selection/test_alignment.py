import json
import math
import pathlib

import numpy as np

from pipeline.config.fingerprint import fingerprint, to_json
from pipeline.config.selection import KeepFraction, KeepLanguages, SelectionConfig
from pipeline.selection import alignment, rules
from tests.support.score_tables import (
    Row,
    after_step,
    make_run,
    outcomes,
    read_decisions,
)

NAN = math.nan


def test_a_score_at_the_threshold_is_kept_and_none_fails(tmp_path):
    rows = [Row(score=0.25), Row(score=0.24), Row(score=NAN)]
    run = make_run(str(tmp_path), SelectionConfig(), {"web/1": rows})
    decided = after_step(run, lambda v: alignment.filter_alignment(v, run, 0.25))
    assert [(d.outcome, d.value, d.threshold, d.detail) for d in decided] == [
        ("kept", None, None, ""),
        ("low_alignment", float(np.float32(0.24)), 0.25, ""),
        ("low_alignment", None, 0.25, "no score"),
    ]


def test_the_fraction_is_of_the_droppable_pairs_of_all_lots(tmp_path):
    config = SelectionConfig(
        drop_rules=(rules.FewWords(2),),
        language=KeepLanguages(),
        alignment=KeepFraction(0.5),
    )
    shards = {
        "web/1": [Row(score=0.75), Row(score=0.5), Row("short", score=0.9)],
        "web/2": [Row(score=0.25), Row(code="de", score=0.9)],
        "more/1": [Row(score=0.125), Row(score=0.9, error="broken")],
        "city/1": [Row(score=0.0), Row(score=0.9)],
    }
    run = make_run(str(tmp_path), config, shards, keep_all=["city"])
    assert outcomes(run) == {
        "web/1": ["kept", "kept", "few_words"],
        "web/2": ["low_alignment", "language"],
        "more/1": ["low_alignment", "unreadable"],
        "city/1": ["kept", "kept"],
    }
    assert read_decisions(run)["web/2"][0].threshold == 0.5


def cuts_of(run) -> dict:
    path = pathlib.Path(run.decisions.folder, alignment.CUTS_NAME)
    return json.loads(path.read_text())


SOURCES = {
    "web/1": [Row(score=0.75), Row(score=0.5)],
    "web/2": [Row(score=0.25), Row(score=NAN)],
    "more/1": [Row(score=0.125), Row(score=0.0625)],
    "city/1": [Row(score=0.0)],
}


def test_the_share_can_be_one_of_the_pool(tmp_path):
    config = SelectionConfig(alignment=KeepFraction(0.5))
    run = make_run(str(tmp_path), config, SOURCES, keep_all=["city"])
    assert outcomes(run) == {
        "web/1": ["kept", "kept"],
        "web/2": ["kept", "low_alignment"],
        "more/1": ["low_alignment", "low_alignment"],
        "city/1": ["kept"],
    }
    counts = {"n_contested": 6, "n_without_score": 1, "n_kept": 3}
    assert cuts_of(run) == {"all sources": {"score": 0.25} | counts}


def test_the_share_can_be_one_of_each_source(tmp_path):
    config = SelectionConfig(alignment=KeepFraction(0.5, per_source=True))
    run = make_run(str(tmp_path), config, SOURCES, keep_all=["city"])
    assert outcomes(run) == {
        "web/1": ["kept", "kept"],
        "web/2": ["low_alignment", "low_alignment"],
        "more/1": ["kept", "low_alignment"],
        "city/1": ["kept"],
    }
    assert cuts_of(run) == {
        "city": {"score": None, "n_contested": 0, "n_without_score": 0, "n_kept": 0},
        "more": {"score": 0.125, "n_contested": 2, "n_without_score": 0, "n_kept": 1},
        "web": {"score": 0.5, "n_contested": 4, "n_without_score": 1, "n_kept": 2},
    }


def test_a_pool_without_a_score_keeps_nothing(tmp_path):
    config = SelectionConfig(alignment=KeepFraction(0.5))
    run = make_run(str(tmp_path), config, {"web/1": [Row(score=NAN)] * 2, "web/2": []})
    assert outcomes(run)["web/1"] == ["low_alignment"] * 2
    assert cuts_of(run)["all sources"]["score"] is None


def test_a_new_field_at_its_default_changes_no_fingerprint():
    before = {"class": "KeepFraction", "keep_fraction": 0.5}
    assert fingerprint(KeepFraction(0.5)) == fingerprint(before)
    per_source = KeepFraction(0.5, per_source=True)
    assert fingerprint(per_source) == fingerprint(before | {"per_source": True})
    assert to_json(KeepFraction(0.5)) == before | {"per_source": False}
