"""What is compared with is accounted for: read = compared + left out, by reason."""

import dataclasses
import json
import pathlib
import re

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import curate
from pipeline.config.duplicates import PerceptualDescriptor, Resemblance
from pipeline.config.selection import (
    CapPerSeed,
    EvaluationDuplicates,
    NearSeeds,
    SelectionConfig,
)
from pipeline.export import manifest
from pipeline.selection import ledger, reference_accounts
from pipeline.storage import files
from tests.support.score_tables import Row, make_run, select

LOST = {"embedding": (0, 0), "perceptual": (0, 0)}
WHOLE, NOT_AN_IMAGE = Row(key="w"), Row(key="n", error="starts with b'GIF'", **LOST)
HALF = [
    Row(key="a"),
    Row(key="b", error="JPEG: cut off at byte 120", **LOST),
    Row(key="c", error="JPEG: cut off at byte 7", **LOST),
    Row(key="d", embedding=(0, 1)),
]
EVALUATED = SelectionConfig(max_evaluation_similarity=0.9)
SEARCHED = SelectionConfig(retrieval=NearSeeds(-1.0))


def sets_of(folder, config=EVALUATED, **roles):
    run = make_run(str(folder), config, {"web/1": [Row(), Row()]}, **roles)
    return run, select(run)


def counts(**changed) -> dict:
    nothing = {"read": 0, "compared": 0, "unreadable": 0, "not_compared": {}}
    return nothing | {"broken_shards": 0, "such_as": []} | changed


@pytest.mark.parametrize(
    ("role", "config"),
    [
        ("evaluation", EVALUATED),
        ("seeds", SEARCHED),
        ("seeds", SelectionConfig(balance=(CapPerSeed(9),))),
    ],
)
def test_images_that_cannot_be_read_are_counted_named_and_warned_of(
    tmp_path, role, config
):
    run, ledger = sets_of(tmp_path, config, **{role: {"birds/1": HALF}})
    assert ledger[role] == {
        "birds": counts(
            read=4,
            compared=2,
            unreadable=2,
            not_compared={"JPEG: cut off at byte ...": 2},
            such_as=["b", "c"],
        )
    }
    (line,) = reference_accounts.warnings(run, ledger)
    images = "evaluation images" if role == "evaluation" else "seed images"
    assert line.startswith(
        f"birds: 2 of 4 {images} cannot be read and were not compared: JPEG: cut off at"
        " byte ... (2); such as b, c; all in "
    )
    path = pathlib.Path(line.rpartition(" ")[2])
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(row["role"], row["shard"], row["key"], row["error"]) for row in rows] == [
        (role, "birds/1", "b", "JPEG: cut off at byte 120"),
        (role, "birds/1", "c", "JPEG: cut off at byte 7"),
    ]
    assert manifest.header(run)["ledger"][role] == ledger[role]


def test_a_set_that_is_read_whole_is_no_warning(tmp_path):
    run, ledger = sets_of(tmp_path, evaluation={"birds/1": [Row(), Row()]})
    assert ledger["evaluation"] == {"birds": counts(read=2, compared=2)}
    assert ledger["seeds"] == {}
    assert list(reference_accounts.warnings(run, ledger)) == []
    assert not files.is_file(
        files.join(run.decisions.folder, reference_accounts.FILE_NAME)
    )


def test_sets_of_several_shards_are_counted_separately(tmp_path):
    sets = {"birds/1": HALF, "birds/2": [WHOLE], "apes/1": [WHOLE, NOT_AN_IMAGE]}
    run, ledger = sets_of(tmp_path, evaluation=sets)
    found = {
        name: (one["read"], one["compared"], one["unreadable"])
        for name, one in ledger["evaluation"].items()
    }
    assert found == {"apes": (2, 1, 1), "birds": (5, 3, 2)}
    assert [w.split(":")[0] for w in reference_accounts.warnings(run, ledger)] == [
        "apes",
        "birds",
    ]


def test_of_a_shard_that_breaks_off_nobody_knows_how_many_images_are_missing(tmp_path):
    rows = [WHOLE, Row(key="-", error="tar cut off at byte 512", **LOST)]
    run = make_run(str(tmp_path), EVALUATED, {"web/1": [Row()]}, evaluation={"e/1": []})
    (lot,) = run.evaluation_lots
    run = make_run(
        str(tmp_path), EVALUATED, {"web/1": [Row()]}, evaluation={"e/1": rows}
    )
    table = run.pairs(lot.source).read(lot.name)
    keys = table.schema.get_field_index("key")
    run.pairs(lot.source).write(lot.name, table.set_column(keys, "key", [["w", ""]]))
    ledger = select(run)
    assert ledger["evaluation"]["e"]["broken_shards"] == 1
    (line,) = reference_accounts.warnings(run, ledger)
    assert "1 of its shards cannot be read to the end, so that it is not known" in line


def test_an_image_that_one_descriptor_cannot_tell_is_not_compared(tmp_path):
    by = (Resemblance(PerceptualDescriptor(), 0.9),)
    config = SelectionConfig(
        max_evaluation_similarity=0.9, evaluation_duplicates=EvaluationDuplicates(by)
    )
    blank = Row(key="blank", perceptual=(0, 0))
    run, ledger = sets_of(tmp_path, config, evaluation={"birds/1": [WHOLE, blank]})
    found = ledger["evaluation"]["birds"]
    assert found["not_compared"] == {"no embedding by perceptual": 1}
    assert (found["read"], found["compared"], found["unreadable"]) == (2, 1, 0)
    (line,) = reference_accounts.warnings(run, ledger)
    assert "1 of 2 evaluation images were not compared, 0 cannot be read: no" in line


def test_sets_that_no_step_compares_with_are_counted_too(tmp_path):
    config = SelectionConfig()
    run, ledger = sets_of(tmp_path, config, evaluation={"e/1": HALF}, seeds={"s/1": []})
    found = ledger["evaluation"]["e"]
    assert (found["read"], found["compared"]) == (4, 0)
    assert found["not_compared"][reference_accounts.UNUSED] == 2
    assert sum(found["not_compared"].values()) == 4
    assert ledger["seeds"] == {"s": counts()}
    assert list(reference_accounts.warnings(run, ledger)) == []  # another line says so


@pytest.mark.parametrize(
    ("rows", "share", "expected"),
    [
        ([NOT_AN_IMAGE] * 3, 0.9, "at least one readable image: 3 of 3 evaluation"),
        ([NOT_AN_IMAGE], 1.0, "at least one readable image: 1 of 1 evaluation"),
        (
            HALF,
            0.4,
            "max_unreadable_reference_share=0.4 of it at most to be",
        ),
        (
            [WHOLE, NOT_AN_IMAGE],
            0.0,
            "max_unreadable_reference_share=0.0 of it",
        ),
    ],
)
def test_too_large_a_share_stops_before_decisions_are_written(
    tmp_path, rows, share, expected
):
    config = SelectionConfig(
        max_evaluation_similarity=0.9, max_unreadable_reference_share=share
    )
    with pytest.raises(ValueError, match=f"^evaluation_sets=e: expected {expected}"):
        sets_of(tmp_path, config, evaluation={"e/1": rows})
    assert not (tmp_path / "decisions").exists()


def test_half_of_a_set_or_a_bound_that_is_met_goes_on(tmp_path):
    for share in (0.9, 0.5):
        config = SelectionConfig(
            max_evaluation_similarity=0.9, max_unreadable_reference_share=share
        )
        _, ledger = sets_of(tmp_path, config, evaluation={"e/1": HALF})
        assert ledger["evaluation"]["e"]["compared"] == 2


def test_another_bound_decides_nothing_again_and_holds_for_what_is_decided(tmp_path):
    config = SelectionConfig(max_evaluation_similarity=0.9)
    run, _ = sets_of(tmp_path, config, evaluation={"e/1": HALF})
    strict = dataclasses.replace(config, max_unreadable_reference_share=0.4)
    stricter = dataclasses.replace(
        run, config=dataclasses.replace(run.config, selection=strict)
    )
    assert stricter.decisions == run.decisions
    assert curate.select(run, PipelineOptions([])) == {}
    message = "max_unreadable_reference_share=0.4 of it at most to be left out"
    with pytest.raises(ValueError, match=message):
        curate.select(stricter, PipelineOptions([]))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share):
    message = re.escape(f"max_unreadable_reference_share={share}: expected 0 to 1")
    with pytest.raises(ValueError, match=message):
        SelectionConfig(max_unreadable_reference_share=share)


def test_a_line_is_short_whatever_the_errors_and_keys_are(tmp_path):
    rows = [
        Row(key="k" * 5000 + f"\n{i}", error=chr(65 + i % 26) * (300 + i), **LOST)
        for i in range(60)
    ]
    run, ledger = sets_of(tmp_path, evaluation={"e/1": [*HALF, *rows, *[WHOLE] * 60]})
    found = ledger["evaluation"]["e"]
    assert found["read"] == found["compared"] + sum(found["not_compared"].values())
    (line,) = reference_accounts.warnings(run, ledger)
    assert len(line.partition("; all in ")[0]) < 700
    assert "\n" not in line


def test_a_second_run_that_has_nothing_to_do_warns_again(tmp_path):
    sets = {"evaluation": {"birds/1": HALF}}
    run = make_run(str(tmp_path), EVALUATED, {"web/1": [Row(), Row()]}, **sets)
    assert list(reference_accounts.warnings(run, ledger.read(run) or {})) == []
    options = PipelineOptions([])
    assert curate.select(run, options)["dropped_near_evaluation"] == 2
    (line,) = reference_accounts.warnings(run, ledger.read(run) or {})
    assert line.startswith("birds: 2 of 4 evaluation images cannot be read")
    assert curate.select(run, options) == {}
    assert list(reference_accounts.warnings(run, ledger.read(run) or {})) == [line]
