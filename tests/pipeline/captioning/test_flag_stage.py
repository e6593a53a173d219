"""Flags of captions that are written by hand, in tables of a small run."""

import dataclasses
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from pipeline import curate, records
from pipeline.captioning import coverage
from pipeline.captioning.caption_scores import TextEncoderHandler
from pipeline.captioning.coverage import count_captioned, find_incomplete
from pipeline.captioning.flag_counts import FlagCounts, count_flags, is_complete
from pipeline.captioning.flag_stage import Flag
from pipeline.commands.beam_flags import beam_options
from pipeline.commands.status import print_status
from pipeline.config.captions import CaptionQuality, Granularity
from pipeline.config.curation import EncoderConfig
from pipeline.config.prompts import prompt_hash
from pipeline.config.selection import SelectionConfig
from pipeline.demo_web import descriptions
from pipeline.demo_web.rendering import draw
from pipeline.demo_web.scene import sample_scene
from pipeline.engine.caption_tables import CaptionTables
from pipeline.models.encoders import NullEncoder, load_encoder
from pipeline.records import (
    DropReason,
    FinishReason,
    FlaggedCaption,
    SyntheticCaption,
    content_hash,
    sample_id,
)
from pipeline.report import caption_facts
from pipeline.storage.tables import LotTables, from_table
from tests.support.tiny_run import (
    bytes_of,
    make_run,
    plain_rows,
    run_stage,
    write_tables,
)

SHORT = Granularity("short", "tiny", "cap en", n_words=(1, 3))
LONG = Granularity("long", "tiny", "describe en", n_words=(4, 20))
BOTH = (SHORT, LONG)
ENGLISH = "a brown dog runs after a red ball"
GERMAN = "ein kleiner Junge spielt im Garten mit einem Ball"
MEASURED = CaptionQuality(measure_alignment=True, min_alignment_score=0.5)


class NullHandler(TextEncoderHandler):
    """Loads an encoder without weights, and counts how often."""

    n_loads: ClassVar[int] = 0

    def load_model(self) -> NullEncoder:
        type(self).n_loads += 1
        return NullEncoder(batch_size=4)


@pytest.fixture(autouse=True)
def _no_loads(monkeypatch):
    monkeypatch.setattr(NullHandler, "n_loads", 0)


def flag(run_folder, lots=None):
    handler = NullHandler(run_folder.config.encoder)
    return run_stage(Flag(run_folder, handler), lots or run_folder.lots)


def write(run_folder, granularity, stem_to_texts, rows):
    """Adds captions to the first rows of each lot; None leaves a row without."""
    tables = CaptionTables.open(run_folder.captions(granularity))
    for lot in run_folder.lots:
        stem = Path(lot.shards[0].uri).stem
        captions = [
            captioned(row.image, granularity, text)
            for row, text in zip(rows[stem], stem_to_texts.get(stem, ()), strict=False)
            if text is not None
        ]
        if captions:
            tables.add(lot.base, captions)


def captioned(image, granularity, text, **changes):
    row = SyntheticCaption(
        image_hash=content_hash(image),
        prompt_hash=prompt_hash(granularity.prompt),
        sample_index=0,
        text=text,
        n_tokens=4,
        finish_reason=str(FinishReason.STOP),
        mean_logprob=-0.5,
    )
    return dataclasses.replace(row, **changes)


def rows_of(run_folder, lot):
    return from_table(run_folder.flags.read(lot.name), FlaggedCaption)


def flags_of(run_folder):
    """(granularity, flags) of all rows, by lot."""
    return [
        (row.granularity, row.flags)
        for lot in run_folder.lots
        for row in rows_of(run_folder, lot)
    ]


def two_lots(root, **changes):
    """Three and two images; one caption in German, one too long, one missing."""
    rows = {"a": plain_rows(3), "b": plain_rows(2, first=10)}
    run_folder = make_run(root, rows, **{"granularities": BOTH} | changes)
    short = {"a": ["dog", "cat", ENGLISH], "b": ["dog", "bird"]}
    write(run_folder, SHORT, short, rows)
    write(run_folder, LONG, {"a": [ENGLISH, None, ENGLISH], "b": [GERMAN]}, rows)
    return run_folder


def test_every_caption_of_a_kept_pair_gets_one_row_in_order(tmp_path):
    run_folder = two_lots(tmp_path)
    assert flag(run_folder) == {
        "captions_checked": 8,
        "captions_flagged": 3,
        "flagged_equals_other": 1,
        "flagged_language": 1,
        "flagged_length": 1,
        "texts_detected": 8,
    }
    first = rows_of(run_folder, run_folder.lots[0])
    ids = [sample_id(row.image, row.alt_text.encode()) for row in plain_rows(3)]
    assert [(row.sample_id, row.granularity, row.flags) for row in first] == [
        (ids[0], "short", ()),
        (ids[0], "long", ()),
        (ids[1], "short", ()),
        (ids[2], "short", ("length",)),
        (ids[2], "long", ("equals_other",)),
    ]
    assert [row.n_words for row in first] == [1, 8, 1, 8, 8]
    assert {row.alignment_score for row in first} == {None}
    german = rows_of(run_folder, run_folder.lots[1])[1]
    assert (german.flags, german.language) == (("language",), "de")
    assert german.language_probability > 0.9


def test_captions_that_failed_and_pairs_that_are_dropped_have_no_row(tmp_path):
    rows = plain_rows(3)
    rows[2] = dataclasses.replace(rows[2], outcome=DropReason.LANGUAGE)
    run_folder = make_run(tmp_path, {"a": rows}, granularities=(SHORT,))
    image_hash = content_hash(rows[0].image)
    good = captioned(rows[0].image, SHORT, "dog", sample_index=1)
    failed = captioned(rows[1].image, SHORT, "no model", finish_reason="error")
    dropped = captioned(rows[2].image, SHORT, "cat")
    lost = dataclasses.replace(failed, image_hash=image_hash)
    tables = CaptionTables.open(run_folder.captions(SHORT))
    tables.add(run_folder.lots[0].name, [lost, good, failed, dropped])
    assert flag(run_folder) == {"captions_checked": 1, "texts_detected": 2}
    (row,) = rows_of(run_folder, run_folder.lots[0])
    assert (row.sample_index, row.flags) == (1, ())


def test_a_repeated_prompt_is_flagged_as_it_was_filled_in(tmp_path):
    rows = plain_rows(2)  # with the alt texts "text 0" and "text 1"
    again = Granularity("again", "tiny", "say {alt_text} with {caption:short}")
    run_folder = make_run(tmp_path, {"a": rows}, granularities=(SHORT, again))
    write(run_folder, SHORT, {"a": ["dog", "text 1"]}, {"a": rows})
    asked = [
        captioned(row.image, again, text, prompt_hash=prompt_hash(prompt))
        for row, text, prompt in (
            (rows[0], "Say text 0 with dog.", "say text 0 with dog"),
            (rows[1], "say text 0 with dog", "say text 1 with text 1"),
        )
    ]
    tables = CaptionTables.open(run_folder.captions(again))
    tables.add(run_folder.lots[0].name, asked)
    flag(run_folder)
    assert flags_of(run_folder) == [
        ("short", ()),
        ("again", ("prompt_echo",)),
        ("short", ("equals_alt_text",)),
        ("again", ()),
    ]


def test_a_caption_is_frequent_by_the_images_of_the_whole_run(tmp_path):
    rows = {"a": plain_rows(3), "b": plain_rows(3, first=10)}
    rows["b"][0] = dataclasses.replace(rows["a"][0], alt_text="the same image again")
    run_folder = make_run(
        tmp_path,
        rows,
        granularities=BOTH,
        caption_quality=CaptionQuality(max_identical=2),
    )
    # "dog" on 3 images, of which one comes twice; "cat" on 2; "a dog ..." on 4.
    short = {"a": ["Dog.", "dog", "cat"], "b": ["dog", " DOG", "cat"]}
    long = {
        "a": ["a dog on a rug"] * 2,
        "b": [None, "a dog on a rug.", "A dog on a rug"],
    }
    write(run_folder, SHORT, short, rows)
    write(run_folder, LONG, long, rows)
    counters = flag(run_folder)
    assert counters["flagged_frequent"] == 4
    frequent = [name for name, flags in flags_of(run_folder) if "frequent" in flags]
    assert frequent == ["long"] * 4


def test_frequent_counts_the_texts_of_a_granularity_apart(tmp_path):
    rows = {"a": plain_rows(4)}
    loose = dataclasses.replace(LONG, n_words=(1, 20))
    quality = CaptionQuality(max_identical=1)
    run_folder = make_run(
        tmp_path, rows, granularities=(SHORT, loose), caption_quality=quality
    )
    write(run_folder, SHORT, {"a": ["dog", "dog", "cat", "bird"]}, rows)
    write(run_folder, loose, {"a": ["cow", "sheep", "dog", "..."]}, rows)
    assert "flagged_frequent" not in flag(run_folder)


def test_a_second_run_does_nothing(tmp_path):
    run_folder = two_lots(tmp_path)
    assert not is_complete(run_folder)
    flag(run_folder)
    assert is_complete(run_folder)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert curate.flag(run_folder, beam_options([])) == {}
    assert flag(run_folder) == {}
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_the_order_of_the_lots_changes_no_byte(tmp_path):
    run_folder = two_lots(tmp_path, caption_quality=MEASURED)
    with_vectors(run_folder)
    first = dataclasses.replace(run_folder, root=str(tmp_path / "first"))
    shutil.copytree(run_folder.root, first.root)
    flag(first)
    flag(run_folder, run_folder.lots[::-1])
    assert len(list(Path(first.flags.folder).glob("*.parquet"))) == 2
    assert bytes_of(first.root) == bytes_of(run_folder.root)


@pytest.mark.parametrize(
    "n_tables", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 5))]
)
def test_a_run_that_is_killed_and_restarted_gives_the_same_bytes(
    tmp_path, monkeypatch, n_tables
):
    run_folder = two_lots(tmp_path)
    before = tmp_path / "before"
    shutil.copytree(run_folder.root, before)
    flag(run_folder)
    undisturbed = bytes_of(run_folder.root)
    shutil.rmtree(run_folder.root)
    shutil.copytree(before, run_folder.root)
    write_table, n_written = LotTables.write, []

    def write_or_die(tables, lot_name, table, facts=None):
        if len(n_written) == n_tables:
            raise OSError("killed")
        n_written.append(1)
        write_table(tables, lot_name, table, facts)

    monkeypatch.setattr(LotTables, "write", write_or_die)
    with pytest.raises(Exception, match="killed"):
        flag(run_folder)
    monkeypatch.setattr(LotTables, "write", write_table)
    flag(run_folder)
    assert bytes_of(run_folder.root) == undisturbed


def with_vectors(run_folder):
    """Makes the stored image embeddings those of NullEncoder for "dog"."""
    vector = NullEncoder().encode_texts(["dog"]).astype(np.float16)
    for lot in run_folder.lots:
        n_rows = run_folder.embeddings(lot.source).read(lot.name).num_rows
        write_embeddings(run_folder, lot, np.tile(vector, (n_rows, 1)))


def write_embeddings(run_folder, lot, vectors):
    table = run_folder.embeddings(lot.source).read(lot.name)
    flat = pa.array(vectors.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    embeddings = table.set_column(0, "embedding", column)
    run_folder.embeddings(lot.source).write(lot.name, embeddings)


def test_another_threshold_flags_again_and_runs_no_model(tmp_path):
    run_folder = two_lots(tmp_path, caption_quality=MEASURED)
    with_vectors(run_folder)
    counters = flag(run_folder)
    assert counters["texts_encoded"] == counters["texts_detected"] == 8
    assert counters["flagged_low_alignment"] == 6  # all but "dog", twice
    assert NullHandler.n_loads == 1
    captions = bytes_of(Path(run_folder.root) / "captions")
    looser = dataclasses.replace(MEASURED, min_alignment_score=-1.0)
    wider = tuple(dataclasses.replace(g, n_words=(1, 20)) for g in BOTH)
    config = dataclasses.replace(
        run_folder.config, caption_quality=looser, granularities=wider
    )
    run_folder = dataclasses.replace(run_folder, config=config)
    assert not is_complete(run_folder)
    assert flag(run_folder) == {
        "captions_checked": 8,
        "captions_flagged": 2,
        "flagged_equals_other": 1,
        "flagged_language": 1,
    }
    assert NullHandler.n_loads == 1
    assert bytes_of(Path(run_folder.root) / "captions") == captions


def test_new_captions_alone_are_measured(tmp_path):
    run_folder = two_lots(tmp_path, caption_quality=MEASURED)
    with_vectors(run_folder)
    flag(run_folder)
    rows = {"b": plain_rows(2, first=10)}
    tables = CaptionTables.open(run_folder.captions(LONG))
    new = captioned(rows["b"][1].image, LONG, "a bird sings on a branch")
    tables.add(run_folder.lots[1].name, [new])
    assert not is_complete(run_folder)
    counters = flag(run_folder)
    assert counters["texts_detected"] == counters["texts_encoded"] == 1
    assert counters["captions_checked"] == 4


def test_all_that_flags_depend_on_names_their_folder(tmp_path):
    run_folder = two_lots(tmp_path)
    config = run_folder.config
    changed = [
        dataclasses.replace(config, caption_quality=CaptionQuality(max_identical=9)),
        dataclasses.replace(config, language_detector="langdetect"),
        dataclasses.replace(config, granularities=(SHORT,)),
        dataclasses.replace(config, granularities=(LONG, SHORT)),
        dataclasses.replace(
            config, granularities=(dataclasses.replace(SHORT, n_words=(1, 2)), LONG)
        ),
        dataclasses.replace(config, selection=SelectionConfig(drop_rules=())),
    ]
    folders = [dataclasses.replace(run_folder, config=c).flags.folder for c in changed]
    assert len({run_folder.flags.folder, *folders[:-1]}) == len(changed)
    assert folders[-1] == run_folder.flags.folder  # the same configuration
    fewer = dataclasses.replace(run_folder, lots=run_folder.lots[:1])
    assert fewer.flags == run_folder.flags  # a pool grows


def test_a_new_lot_changes_the_flags_of_a_lot_only_if_its_texts_become_frequent(
    tmp_path,
):
    rows = {stem: plain_rows(1, first=10 * i) for i, stem in enumerate("abcd")}
    quality = CaptionQuality(max_identical=1)
    whole = make_run(tmp_path, rows, granularities=(SHORT,), caption_quality=quality)
    red = ["a red dog"]
    write(whole, SHORT, {"a": red, "b": ["a cat"], "c": red, "d": red}, rows)
    few = dataclasses.replace(whole, lots=whole.lots[:2])
    more = dataclasses.replace(whole, lots=whole.lots[:3])
    flag(few)
    first = times_of(few)
    assert not is_complete(more)
    flag(more)
    second = times_of(more)
    assert second.items() > first.items()  # two images have it: not frequent yet
    flag(whole)
    third = times_of(whole)
    a, b, c, _ = (lot.name for lot in whole.lots)
    assert (third[a] != second[a], third[b] == second[b]) == (True, True)
    assert third[c] != second[c]
    assert is_complete(whole)
    assert count_captioned(whole).counts("short") == (4, 4)


def times_of(run_folder):
    folder = Path(run_folder.flags.folder)
    return {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}


def test_the_number_of_words_is_no_part_of_the_captions(tmp_path):
    run_folder = two_lots(tmp_path)
    wider = dataclasses.replace(SHORT, n_words=(1, 9))
    assert run_folder.captions(wider) == run_folder.captions(SHORT)


def test_alignment_is_the_cosine_of_the_caption_and_the_stored_image(tmp_path):
    checkpoint = "curation_configs/checkpoints/tiny-siglip"
    encoder = load_encoder(EncoderConfig(checkpoint, batch_size=4))
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(2)]
    pictures = [encoder.prepare_image(draw(scene)[0]) for scene in scenes]
    images = encoder.encode_images(np.stack(pictures)).astype(np.float16)
    texts = [descriptions.captions(scene)["detailed"] for scene in scenes]
    rows = {"a": plain_rows(2)}
    run_folder = make_run(tmp_path, rows, granularities=BOTH, caption_quality=MEASURED)
    config = dataclasses.replace(
        run_folder.config, encoder=EncoderConfig(checkpoint, batch_size=4)
    )
    run_folder = dataclasses.replace(
        run_folder, config=config, checkpoint_to_digest={"tiny": "1", checkpoint: "2"}
    )
    (lot,) = run_folder.lots
    write_tables(run_folder, lot, rows["a"])
    write_embeddings(run_folder, lot, images)
    write(run_folder, SHORT, {"a": texts}, rows)
    write(run_folder, LONG, {"a": texts[::-1]}, rows)
    run_stage(Flag(run_folder), run_folder.lots)
    found = [row.alignment_score for row in rows_of(run_folder, lot)]
    cosines = images.astype(np.float32) @ encoder.encode_texts(texts).T
    expected = [cosines[0, 0], cosines[0, 1], cosines[1, 1], cosines[1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert min(found[0], found[2]) > 0.5 > max(found[1], found[3])
    is_low = ["low_alignment" in flags for _, flags in flags_of(run_folder)]
    assert is_low == [False, True, False, True]


def test_status_reads_no_tables_of_many_lots(tmp_path, capsys, monkeypatch):
    run_folder = two_lots(tmp_path)
    monkeypatch.setattr(coverage, "_MAX_COUNTED", 1)
    assert count_captioned(run_folder) is None
    assert find_incomplete(run_folder, [SHORT]) == [SHORT]
    print_status(run_folder)
    assert capsys.readouterr().out.count("not all captioned and checked yet") == 2
    flag(run_folder)
    print_status(run_folder)
    assert "not all" not in capsys.readouterr().out


def test_status_counts_flags_by_granularity(tmp_path, capsys):
    run_folder = two_lots(tmp_path)
    assert count_flags(run_folder) == {}
    print_status(run_folder)
    assert "flagged" not in capsys.readouterr().out
    flag(run_folder)
    assert count_flags(run_folder) == {
        "short": FlagCounts(5, 1, {"length": 1}, 5),
        "long": FlagCounts(3, 2, {"equals_other": 1, "language": 1}, 3),
    }
    print_status(run_folder)
    lines = capsys.readouterr().out.splitlines()
    assert "  flagged: 1 of 5 captions (length 1)" in lines
    assert "  flagged: 2 of 3 captions (equals_other 1, language 1)" in lines


def test_lengths_of_captions_come_from_summaries_or_else_from_tables(tmp_path):
    run_folder = two_lots(tmp_path)
    flag(run_folder)

    def lengths() -> dict:
        return {
            name: (one.counts.tolist(), one.n_flagged, dict(one.flags))
            for name, one in caption_facts.read_lengths(run_folder).items()
        }

    found = lengths()
    assert {name: sum(counts) for name, (counts, *_) in found.items()} == {
        "short": 5,
        "long": 3,
    }
    assert found["short"][1:] == (1, {"length": 1})
    tables = run_folder.flags
    for lot in run_folder.lots:  # as a takedown leaves them
        tables.write(lot.name, tables.read(lot.name))
    assert lengths() == found


def test_a_run_without_kept_pairs_gets_an_empty_table(tmp_path):
    row = dataclasses.replace(plain_rows(1)[0], outcome=records.UNREADABLE)
    run_folder = make_run(tmp_path, {"a": [row]}, granularities=BOTH)
    assert flag(run_folder) == {}
    assert is_complete(run_folder)
    assert rows_of(run_folder, run_folder.lots[0]) == []
