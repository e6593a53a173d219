"""Caption with a captioner that says the mean color of an image."""

import dataclasses
import hashlib
import math
import shutil
import sys
import weakref
from pathlib import Path

import pytest

from pipeline.captioning import failed_captions
from pipeline.captioning.captioner_handler import check
from pipeline.captioning.coverage import count_captioned
from pipeline.captioning.stage import Caption
from pipeline.config.prompts import prompt_hash
from pipeline.config.selection import MinScore, SelectionConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.records import DropReason, SyntheticCaption, content_hash
from pipeline.storage.tables import from_table
from tests.support.tiny_run import (
    LONG,
    SHORT,
    FakeHandler,
    Row,
    bytes_of,
    encoded,
    make_run,
    plain_rows,
    run_stage,
)

FEWER = SelectionConfig(alignment=MinScore(0.9))
MORE = SelectionConfig(alignment=MinScore(0.1))


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """What models were asked for, with numbers of rows."""
    monkeypatch.setattr(FakeHandler, "calls", [])
    return FakeHandler.calls


def caption(run, lots=None):
    stage = Caption(run, run.config.granularities, FakeHandler)
    return run_stage(stage, lots or run.lots)


def without_slots(counters):
    return {name: n for name, n in counters.items() if name != "caption_slots"}


def rows_of(run, granularity, lot):
    tables = CaptionTables.open(run.captions(granularity))
    return [
        row
        for name in tables.names(lot)
        for row in from_table(tables.tables.read(name), SyntheticCaption)
    ]


def texts_of(run, granularity, lot):
    return [row.text for row in rows_of(run, granularity, lot)]


def test_every_kept_image_gets_one_row_a_granularity_in_the_order_of_the_lot(tmp_path):
    kept, dropped = [Row(encoded((i, 7, 9))) for i in range(2)], Row(encoded((9, 9, 9)))
    dropped = dataclasses.replace(dropped, outcome=DropReason.LANGUAGE)
    run = make_run(tmp_path, {"a": [kept[0], dropped, kept[1]]})
    counters = caption(run)
    hashes = [content_hash(row.image) for row in kept]
    prompt = prompt_hash(SHORT.prompt)
    assert rows_of(run, SHORT, run.lots[0]) == [
        SyntheticCaption(hashes[0], prompt, 0, "cap en 0 7 9", 5, "stop", -0.5),
        SyntheticCaption(hashes[1], prompt, 0, "cap en 1 7 9", 5, "stop", -0.5),
    ]
    prompt = prompt_hash(LONG.prompt)
    assert rows_of(run, LONG, run.lots[0]) == [
        SyntheticCaption(hashes[0], prompt, 0, "describe en 0 7 9", 5, "stop", -0.5),
        SyntheticCaption(hashes[1], prompt, 0, "describe en 1 7 9", 5, "stop", -0.5),
    ]
    keys = [image_hash + prompt_hash(SHORT.prompt) for image_hash in hashes]
    digest = hashlib.blake2b(b"".join(keys), digest_size=6).hexdigest()
    (path,) = Path(run.captions(SHORT)).glob("*.parquet")
    assert path.name == f"{run.lots[0].base}.{digest}.parquet"
    assert counters == {
        "captions_written": 4,
        "images_encoded": 2,
        "caption_slots": 4,
    }


def test_images_of_a_shard_that_changed_are_not_paid_for_again(tmp_path, calls):
    rows = plain_rows(3)
    before = make_run(tmp_path, {"a": rows})
    caption(before)
    repaired = [dataclasses.replace(row, alt_text="another") for row in rows]
    run = make_run(tmp_path, {"a": repaired})
    assert run.lots[0].name != before.lots[0].name
    assert caption(run) == {"lots_skipped": 1}
    grown = make_run(tmp_path, {"a": [*repaired, *plain_rows(1, first=50)]})
    calls.clear()
    assert without_slots(caption(grown)) == {
        "captions_written": 2,
        "images_encoded": 1,
    }
    assert calls == [("load", "tiny"), ("encode", 1), ("short", 1), ("long", 1)]


def test_batches_are_full_and_the_tower_runs_once_for_all_granularities(
    tmp_path, calls
):
    caption(make_run(tmp_path, {"a": plain_rows(6)}))
    full = [("encode", 4), ("short", 4), ("long", 4)]
    rest = [("encode", 2), ("short", 2), ("long", 2)]
    assert calls == [("load", "tiny"), *full, *rest]


def test_the_expected_number_of_words_does_not_part_granularities(tmp_path, calls):
    long = dataclasses.replace(LONG, n_words=(4, 9))
    caption(make_run(tmp_path, {"a": plain_rows(2)}, granularities=(SHORT, long)))
    assert calls == [("load", "tiny"), ("encode", 2), ("short", 2), ("long", 2)]


def test_a_second_run_loads_no_model_and_writes_nothing(tmp_path, calls):
    run = make_run(tmp_path, {"a": plain_rows(3), "b": plain_rows(2, first=10)})
    caption(run)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    calls.clear()
    assert caption(run) == {"lots_skipped": 2}
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_lot_without_kept_images_is_skipped(tmp_path):
    dropped = Row(encoded((1, 2, 3)), outcome=DropReason.FEW_WORDS)
    run = make_run(tmp_path, {"a": [dropped]})
    assert caption(run) == {"lots_skipped": 1}
    assert not Path(run.captions(SHORT)).exists()


def test_a_selection_that_grows_adds_a_table_with_the_new_images_only(tmp_path, calls):
    rows = plain_rows(5)
    fewer = [dataclasses.replace(row, outcome=DropReason.LANGUAGE) for row in rows[1:4]]
    run = make_run(tmp_path, {"a": [rows[0], *fewer, rows[4]]}, selection=FEWER)
    caption(run)
    before = bytes_of(run.captions(SHORT))
    calls.clear()
    run = make_run(tmp_path, {"a": rows}, selection=MORE)
    assert without_slots(caption(run)) == {"captions_written": 6, "images_encoded": 3}
    assert [call for call in calls if call[0] == "encode"] == [("encode", 3)]
    assert before.items() < bytes_of(run.captions(SHORT)).items()
    texts = CaptionTables.open(run.captions(SHORT)).texts(run.lots[0])
    assert texts == {
        (content_hash(row.image), prompt_hash("cap en")): (f"cap en {i} 7 9",)
        for i, row in enumerate(rows)
    }


def test_a_new_granularity_leaves_the_others_alone(tmp_path, calls):
    run = make_run(tmp_path, {"a": plain_rows(3)}, granularities=(SHORT,))
    caption(run)
    before = bytes_of(run.captions(SHORT))
    calls.clear()
    caption(make_run(tmp_path, {"a": plain_rows(3)}))
    assert calls == [("load", "tiny"), ("encode", 3), ("long", 3)]
    assert bytes_of(run.captions(SHORT)) == before


def test_images_are_batched_with_those_that_lack_the_same_granularities(
    tmp_path, calls
):
    rows = plain_rows(6)
    half = [dataclasses.replace(row, outcome=DropReason.LANGUAGE) for row in rows[::2]]
    mixed = [row for pair in zip(half, rows[1::2], strict=True) for row in pair]
    caption(make_run(tmp_path, {"a": mixed}, selection=FEWER, granularities=(SHORT,)))
    calls.clear()
    run = make_run(tmp_path, {"a": rows}, selection=MORE)
    caption(run)
    assert calls[0] == ("load", "tiny")
    both, rest = [("encode", 3), ("short", 3), ("long", 3)], calls[4:]
    assert calls[1:4] == both
    assert rest == [("encode", 3), ("long", 3)]
    expected = [f"describe en {i} 7 9" for i in range(6)]
    assert sorted(texts_of(run, LONG, run.lots[0])) == expected


def test_an_image_that_comes_twice_in_a_lot_is_captioned_once(tmp_path):
    row = Row(encoded((1, 2, 3)))
    run = make_run(tmp_path, {"a": [row, dataclasses.replace(row, alt_text="again")]})
    assert caption(run)["images_encoded"] == 1
    assert texts_of(run, SHORT, run.lots[0]) == ["cap en 1 2 3"]
    assert count_captioned(run).counts(SHORT.name) == (2, 2)


def test_one_corrupt_image_among_64_costs_one_caption(tmp_path, calls):
    rows = plain_rows(64)
    rows[20] = Row(b"\xff\xd8\xff broken")
    run = make_run(tmp_path, {"a": rows}, granularities=(SHORT,))
    counters = caption(run)
    assert counters == {
        "captions_written": 63,
        "captions_failed": 1,
        "images_encoded": 63,
        "caption_slots": 64,
    }
    found = rows_of(run, SHORT, run.lots[0])
    assert [row.text for i, row in enumerate(found) if i != 20] == [
        f"cap en {i} 7 9" for i in range(64) if i != 20
    ]
    failed = found[20]
    assert (failed.finish_reason, failed.n_tokens) == ("error", 0)
    assert failed.text.startswith("JPEG: ")
    assert math.isnan(failed.mean_logprob)
    texts = CaptionTables.open(run.captions(SHORT)).texts(run.lots[0])
    assert len(texts) == 63
    assert failed.image_hash not in {image_hash for image_hash, _ in texts}
    assert count_captioned(run).counts(SHORT.name) == (63, 64)
    assert caption(run) == {"lots_skipped": 1}


def test_one_caption_that_fails_costs_no_other(tmp_path, monkeypatch):
    refuses = staticmethod(lambda text: text == "describe en 2 7 9")
    monkeypatch.setattr(FakeHandler, "refuses", refuses)
    run = make_run(tmp_path, {"a": plain_rows(6)})
    counters = caption(run)
    expected = [f"describe en {i} 7 9" for i in range(6)]
    assert texts_of(run, SHORT, run.lots[0]) == [f"cap en {i} 7 9" for i in range(6)]
    expected[2] = "no caption 'describe en 2 7 9'"
    assert texts_of(run, LONG, run.lots[0]) == expected
    assert counters["captions_written"] == 11
    assert counters["captions_failed"] == 1


def test_a_granularity_of_which_all_captions_fail_is_named_beside_one_that_has_some(
    tmp_path, monkeypatch
):
    refuses = staticmethod(lambda text: text.startswith("describe en"))
    monkeypatch.setattr(FakeHandler, "refuses", refuses)
    run = make_run(tmp_path, {"a": plain_rows(3), "b": plain_rows(3, first=10)})
    caption(run)
    failed_captions.check(run, [SHORT])
    expected = (
        "^max_failed_share=0.01: expected at most that share of the captions of"
        " granularity 'long' to fail, but 6 of 6 did, 1 of them with: no c"
    )
    with pytest.raises(ValueError, match=expected):
        failed_captions.check(run, [SHORT, LONG])


@pytest.mark.parametrize("n_tables", [1, 2])
def test_a_run_that_is_killed_and_restarted_gives_the_same_bytes(
    tmp_path, monkeypatch, n_tables
):
    run = make_run(tmp_path, {"a": plain_rows(3), "b": plain_rows(2, first=10)})
    caption(run)
    undisturbed = bytes_of(run.root)
    shutil.rmtree(Path(run.captions(SHORT)).parent)
    add, n_added = CaptionTables.add, []

    def add_or_die(tables, lot_name, rows):
        if len(n_added) == n_tables:
            raise OSError("killed")
        n_added.append(1)
        add(tables, lot_name, rows)

    monkeypatch.setattr(CaptionTables, "add", add_or_die)
    with pytest.raises(Exception, match="killed"):
        caption(run)
    monkeypatch.setattr(CaptionTables, "add", add)
    caption(run)
    assert bytes_of(run.root) == undisturbed


def test_the_order_of_the_lots_changes_no_byte(tmp_path):
    run = make_run(tmp_path, {"a": plain_rows(3), "b": plain_rows(2, first=10)})
    caption(run)
    first = bytes_of(run.root)
    shutil.rmtree(Path(run.captions(SHORT)).parent)
    caption(run, run.lots[::-1])
    assert bytes_of(run.root) == first


def test_models_of_several_checkpoints_run_one_after_the_other(
    tmp_path, calls, monkeypatch
):
    other = dataclasses.replace(LONG, checkpoint="other")
    rows = {"a": plain_rows(1), "b": plain_rows(1, first=10)}
    run = make_run(tmp_path, rows, granularities=(SHORT, other))
    models, n_alive = [], []
    load_model = FakeHandler.load_model

    def load_and_watch(handler):
        n_alive.append(sum(model() is not None for model in models))
        model = load_model(handler)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(FakeHandler, "load_model", load_and_watch)
    caption(run)
    assert calls == [
        ("load", "tiny"),
        *[("encode", 1), ("short", 1)] * 2,
        ("load", "other"),
        *[("encode", 1), ("long", 1)] * 2,
    ]
    assert n_alive == [0, 0]


def test_coverage_counts_no_lot_that_is_not_decided(tmp_path):
    run = make_run(tmp_path, {"a": plain_rows(3), "b": plain_rows(2, first=10)})
    caption(run, run.lots[:1])
    assert count_captioned(run).counts(SHORT.name) == (3, 5)
    run.decisions.delete([run.lots[1].name])
    assert count_captioned(run).counts(SHORT.name) == (3, 3)


def test_a_missing_torch_is_named(monkeypatch):
    monkeypatch.delitem(
        sys.modules, "pipeline.models.huggingface_captioner", raising=False
    )
    monkeypatch.setitem(sys.modules, "torch", None)
    granularity = dataclasses.replace(LONG, captioner="huggingface")
    with pytest.raises(ValueError, match=r"^captioner='huggingface' of .*\[torch\]"):
        check(granularity)
