"""Captions made elsewhere come to the kept images that they name."""

import dataclasses
import gzip
import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import run as command_line
from pipeline.captioning import imported
from pipeline.captioning.coverage import count_captioned
from pipeline.captioning.stage import Caption, describe
from pipeline.commands import stage_progress
from pipeline.config.captions import Granularity
from pipeline.config.prompts import prompt_hash
from pipeline.config.selection import MinScore, SelectionConfig
from pipeline.engine.caption_tables import CaptionTables
from pipeline.engine.removals import Removals
from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason, SyntheticCaption, content_hash, sample_id
from pipeline.sources import imported_captions
from tests.support.tiny_run import (
    SHORT,
    FakeHandler,
    Row,
    bytes_of,
    encoded,
    make_run,
    plain_rows,
    run_stage,
    write_shard,
    write_tables,
)

FEWER = SelectionConfig(alignment=MinScore(0.9))
MORE = SelectionConfig(alignment=MinScore(0.1))


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """What models were asked for."""
    monkeypatch.setattr(FakeHandler, "calls", [])
    return FakeHandler.calls


def importing_run(root, stem_to_rows, *, more=(), **changes) -> RunFolder:
    """A run with the captions of `root/captions` as the granularity `human`."""
    human = Granularity("human", str(root / "captions" / "*"), captioner="imported")
    changes = {"granularities": (*more, human)} | changes
    run = make_run(root, stem_to_rows, **changes)
    found = imported_captions.list_files(human)
    digest = {human.checkpoint: imported_captions.contents_digest(found)}
    return dataclasses.replace(
        run,
        checkpoint_to_digest=run.checkpoint_to_digest | digest,
        glob_to_files={human.checkpoint: found},
    )


def human_of(run):
    (human,) = [g for g in run.config.granularities if g.captioner == "imported"]
    return human


def folder_of(run):
    return Path(run.captions(human_of(run)))


def caption(run, lots=None):
    stage = Caption(run, run.config.granularities, FakeHandler)
    return run_stage(stage, lots or run.lots)


def write_lines(root, *rows, name="a.jsonl"):
    path = root / "captions" / name
    path.parent.mkdir(exist_ok=True)
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def hex_hash(row: Row) -> str:
    return content_hash(row.image).hex()


def lines_for(rows, text="human {}"):
    """A line a row, with its image hash."""
    return [
        {"image_hash": hex_hash(row), "text": text.format(i)}
        for i, row in enumerate(rows)
    ]


def texts_of(run, lot):
    tables = CaptionTables.open(run.captions(human_of(run)))
    return [row.text for row in tables.rows(lot)]


def listed(run, kind):
    """Rows of a listing, and its first line."""
    lines = (folder_of(run) / f"{kind}.jsonl").read_text().splitlines()
    head, *rows = map(json.loads, lines)
    return rows, head


def test_kept_images_get_their_texts_in_the_order_of_the_lot(tmp_path):
    rows = plain_rows(4)
    rows[1] = dataclasses.replace(rows[1], outcome=DropReason.LANGUAGE)
    write_lines(tmp_path, *lines_for(rows)[::-1])
    run = importing_run(tmp_path, {"a": rows})
    assert caption(run) == {"captions_written": 3, "captions_unmatched": 1}
    tables = CaptionTables.open(run.captions(human_of(run)))
    found = list(tables.rows(run.lots[0]))
    assert all(math.isnan(row.mean_logprob) for row in found)
    assert [dataclasses.replace(row, mean_logprob=0.0) for row in found] == [
        SyntheticCaption(
            image_hash=content_hash(rows[i].image),
            prompt_hash=prompt_hash(""),
            sample_index=0,
            text=f"human {i}",
            n_tokens=0,
            finish_reason="imported",
            mean_logprob=0.0,
        )
        for i in (0, 2, 3)
    ]
    assert count_captioned(run).counts(human_of(run).name) == (3, 3)


@pytest.mark.parametrize(
    ("key", "name"),
    [("image_hash", "a.parquet"), ("sample_id", "a.jsonl"), ("url", "a.jsonl.gz")],
)
def test_images_are_found_by_every_key_and_in_every_kind_of_file(tmp_path, key, name):
    rows = [
        dataclasses.replace(row, url=f"http://web/{i}")
        for i, row in enumerate(plain_rows(3))
    ]
    keys = {
        "image_hash": [content_hash(row.image) for row in rows],
        "sample_id": [sample_id(row.image, row.alt_text.encode()) for row in rows],
        "url": [row.url for row in rows],
    }[key]
    texts = [[f"t {i}", f"u {i}"] for i in range(3)]
    (tmp_path / "captions").mkdir()
    if name == "a.parquet":
        pq.write_table(
            pa.table({key: keys, "text": texts}), tmp_path / "captions/a.parquet"
        )
    else:
        keys = [key if isinstance(key, str) else key.hex() for key in keys]
        write_lines(
            tmp_path,
            *({key: k, "text": t} for k, t in zip(keys, texts, strict=True)),
            name=name,
        )
    run = importing_run(tmp_path, {"a": rows})
    assert caption(run) == {"captions_written": 6}
    tables = CaptionTables.open(run.captions(human_of(run)))
    assert tables.texts(run.lots[0]) == {
        (content_hash(row.image), prompt_hash("")): tuple(texts[i])
        for i, row in enumerate(rows)
    }


def test_an_image_of_several_lots_gets_a_row_in_each_and_one_where_it_repeats(
    tmp_path,
):
    row = Row(encoded((1, 2, 3)))
    again = dataclasses.replace(row, alt_text="again")
    write_lines(tmp_path, *lines_for([row]))
    rows = {"a": [row, again], "b": plain_rows(1, first=50), "c": [again]}
    run = importing_run(tmp_path, rows)
    assert caption(run) == {"captions_written": 2, "lots_skipped": 1}
    texts = [texts_of(run, lot) for lot in run.lots]
    assert texts == [["human 0"], [], ["human 0"]]


def test_of_pairs_that_share_an_image_the_first_that_is_named_counts(tmp_path):
    texts = ["first", "second", "third"]
    rows = [Row(encoded((1, 2, 3)), text) for text in texts]
    ids = [sample_id(row.image, row.alt_text.encode()).hex() for row in rows]
    named = zip(ids[:0:-1], texts[:0:-1], strict=True)
    write_lines(tmp_path, *({"sample_id": i, "text": t} for i, t in named))
    run = importing_run(tmp_path, {"a": rows})
    assert caption(run) == {"captions_written": 1}
    assert texts_of(run, run.lots[0]) == ["second"]


def test_of_a_repeated_key_the_first_row_counts_whatever_the_names_of_files(tmp_path):
    (row,) = rows = plain_rows(1)
    name = {"image_hash": hex_hash(row)}
    lines = [name | {"text": "x"}, name | {"text": "y"}, name | {"text": ["z", "more"]}]
    write_lines(tmp_path, *lines, name="a.jsonl")
    write_lines(tmp_path, name | {"text": "other"}, name="b.jsonl")
    run = importing_run(tmp_path, {"a": rows})
    counters = caption(run)
    assert counters == {"captions_written": 2, "captions_repeated": 3}
    first, _ = run.imported_files(human_of(run))
    expected = {"a.jsonl": "x", "b.jsonl": "other"}[first.name]
    assert texts_of(run, run.lots[0]) == [expected, "more"]
    repeated, head = listed(run, "repeated")
    assert head["n_rows"] == len(repeated) == 3
    before = bytes_of(folder_of(run))
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / f"captions/{old}.jsonl").rename(tmp_path / f"captions/{new}.jsonl")
    shutil.rmtree(folder_of(run))
    renamed = importing_run(tmp_path, {"a": rows})
    caption(renamed)
    assert folder_of(renamed) == folder_of(run)
    after = bytes_of(folder_of(run))
    assert {k for k in before if after[k] != before[k]} == {"repeated.jsonl"}


def test_sample_indexes_of_rows_order_the_captions_of_an_image(tmp_path):
    (row,) = rows = plain_rows(1)
    lines = [
        {"image_hash": hex_hash(row), "text": text, "sample_index": index}
        for index, text in ((7, "late"), (0, "early"), (2, "middle"), (2, "again"))
    ]
    write_lines(tmp_path, *lines)
    run = importing_run(tmp_path, {"a": rows})
    assert caption(run) == {"captions_written": 3, "captions_repeated": 1}
    tables = CaptionTables.open(run.captions(human_of(run)))
    found = [(r.sample_index, r.text) for r in tables.rows(run.lots[0])]
    assert found == [(0, "early"), (2, "middle"), (7, "late")]


def test_pairs_that_a_repaired_shard_names_otherwise_get_their_own_texts(tmp_path):
    (image,) = plain_rows(1)
    wrong, right = (dataclasses.replace(image, alt_text=t) for t in ("wrong", "right"))
    ids = [sample_id(r.image, r.alt_text.encode()).hex() for r in (wrong, right)]
    texts = ("of the wrong one", "of the right one")
    named = zip(ids, texts, strict=True)
    write_lines(tmp_path, *({"sample_id": i, "text": t} for i, t in named))
    for row, text in zip((wrong, right), texts, strict=True):
        run = importing_run(tmp_path, {"a": [row]})
        assert caption(run) == {"captions_written": 1, "captions_unmatched": 1}
        assert texts_of(run, run.lots[0]) == [text]


def test_what_is_left_out_is_counted_and_listed_in_the_order_of_the_files(tmp_path):
    (row,) = rows = plain_rows(1)
    others = [f"{i:032x}" for i in range(4)]
    lines = [{"image_hash": other, "text": "t"} for other in others]
    write_lines(tmp_path, *lines[2:], b"{", {"text": "t"}, name="b.jsonl")
    write_lines(tmp_path, *lines_for([row]), *lines[1::-1], name="a.jsonl")
    run = importing_run(tmp_path, {"a": rows})
    assert caption(run) == {
        "captions_written": 1,
        "captions_unmatched": 4,
        "captions_unreadable": 2,
    }
    about = {"decisions": run.pool_fingerprint}
    unmatched = [
        ("a.jsonl", 2, 1),
        ("a.jsonl", 3, 0),
        ("b.jsonl", 1, 2),
        ("b.jsonl", 2, 3),
    ]
    assert listed(run, "unmatched") == (
        [{"file": f, "row": r, "image_hash": others[i]} for f, r, i in unmatched],
        about | {"n_rows": 4, "n_listed": 4},
    )
    unreadable, head = listed(run, "unreadable")
    assert head == about | {"n_rows": 2, "n_listed": 2}
    assert unreadable[0]["file"] == "b.jsonl"
    assert unreadable[0]["row"] == 3
    assert unreadable[0]["error"].startswith("not JSON: ")
    assert unreadable[1] == {"file": "b.jsonl", "row": 4, "error": "no image_hash"}


def test_only_the_first_rows_of_very_many_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(imported, "MAX_LISTED", 3)
    write_lines(tmp_path, *({"url": f"u{i}", "text": "t"} for i in range(10)))
    run = importing_run(tmp_path, {"a": plain_rows(1)})
    assert caption(run) == {"captions_unmatched": 10, "lots_skipped": 1}
    rows, head = listed(run, "unmatched")
    assert rows == [
        {"file": "a.jsonl", "row": i, "url": f"u{i - 1}"} for i in (1, 2, 3)
    ]
    assert (head["n_rows"], head["n_listed"]) == (10, 3)


def test_rows_without_an_image_are_not_named_once_pairs_were_removed(tmp_path):
    address = "https://owner.org/1.png"
    write_lines(tmp_path, {"url": address, "text": "t"})
    run = importing_run(tmp_path, {"a": plain_rows(1)})
    Removals(done=({"date": "2026-11-30", "pairs": 1},)).write(run.root)
    assert caption(run) == {"captions_unmatched": 1, "lots_skipped": 1}
    assert listed(run, "unmatched")[0] == [{"file": "a.jsonl", "row": 1}]
    assert not [n for n, data in bytes_of(Path(run.root)).items() if b"owner" in data]


def test_a_second_run_reads_no_file_and_writes_nothing(tmp_path, monkeypatch):
    rows = plain_rows(3)
    write_lines(tmp_path, *lines_for(rows[:2]), {"image_hash": "0" * 32, "text": "t"})
    run = importing_run(tmp_path, {"a": rows, "b": plain_rows(1, first=50)})
    assert caption(run)["captions_written"] == 2
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "captions/a.jsonl").rename(tmp_path / "captions/gone.jsonl")
    assert caption(run) == {}
    (tmp_path / "captions/gone.jsonl").rename(tmp_path / "captions/a.jsonl")
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    del before[tmp_path / "captions"], after[tmp_path / "captions"]
    assert after == before


def test_a_selection_that_grows_adds_a_table_with_the_new_matches_only(tmp_path):
    rows = plain_rows(5)
    write_lines(tmp_path, *lines_for(rows[:4]))
    fewer = [dataclasses.replace(row, outcome=DropReason.LANGUAGE) for row in rows[1:3]]
    part = [rows[0], *fewer, *rows[3:]]
    other = plain_rows(2, first=50)
    run = importing_run(tmp_path, {"a": part, "b": other}, selection=FEWER)
    counters = caption(run)
    assert counters == {
        "captions_written": 2,
        "captions_unmatched": 2,
        "lots_skipped": 1,
    }
    before = bytes_of(folder_of(run))
    run = importing_run(tmp_path, {"a": rows, "b": other}, selection=MORE)
    assert caption(run) == {"captions_written": 2, "lots_skipped": 1}
    after = bytes_of(folder_of(run))
    tables = {name for name in before if name.endswith(".parquet")}
    assert {name: after[name] for name in tables} == {n: before[n] for n in tables}
    assert len(after) == len(before) + 2  # a table and its summary
    assert listed(run, "unmatched")[0] == []
    assert sorted(texts_of(run, run.lots[0])) == [f"human {i}" for i in range(4)]
    assert caption(run) == {}


def test_another_file_is_another_folder_of_captions(tmp_path):
    rows = plain_rows(2)
    write_lines(tmp_path, *lines_for(rows[:1]))
    first = importing_run(tmp_path, {"a": rows})
    caption(first)
    before = bytes_of(folder_of(first))
    write_lines(tmp_path, *lines_for(rows, "new {}"), name="b.jsonl")
    second = importing_run(tmp_path, {"a": rows})
    assert folder_of(second) != folder_of(first)
    assert caption(second)["captions_written"] == 2
    assert bytes_of(folder_of(first)) == before


def test_the_order_of_lots_files_and_rows_changes_no_byte(tmp_path, monkeypatch):
    rows = {"a": plain_rows(3), "b": plain_rows(2, first=10), "c": plain_rows(1)}
    lines = lines_for([*rows["a"], *rows["b"], *plain_rows(2, first=90)])
    other = lines[0] | {"text": "other"}
    write_lines(tmp_path, *lines[::2], other, name="a.jsonl")
    write_lines(tmp_path, *lines[1::2], lines[0], b"{", name="b.jsonl.gz")
    run = importing_run(tmp_path, rows)
    counters = caption(run)
    first = bytes_of(folder_of(run))
    assert len(first) == 2 * 3 + 4  # tables with summaries, lists with a receipt
    shutil.rmtree(folder_of(run))
    find, read = imported_captions.files.find, imported_captions.read
    monkeypatch.setattr(imported_captions.files, "find", lambda glob: find(glob)[::-1])
    monkeypatch.setattr(imported_captions, "read", lambda uri: [*read(uri)][::-1])
    again = dataclasses.replace(importing_run(tmp_path, rows), lots=run.lots)
    assert caption(again, again.lots[::-1]) == counters
    assert bytes_of(folder_of(run)) == first


@pytest.mark.parametrize(
    "n_writes", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
)
def test_a_run_that_is_killed_and_restarted_gives_the_same_bytes(
    tmp_path, monkeypatch, n_writes
):
    """Kills it between tables (1), before all listings (2) and between them (4)."""
    rows = {"a": plain_rows(3), "b": plain_rows(2, first=10)}
    everything = [*rows["a"], *rows["b"], *plain_rows(2, first=90)]
    write_lines(tmp_path, *lines_for(everything), b"{")
    run = importing_run(tmp_path, rows)
    caption(run)
    undisturbed = bytes_of(folder_of(run))
    shutil.rmtree(folder_of(run))
    write, n_written = imported.files.write, []

    def write_or_die(path, data):
        if len(n_written) == n_writes:
            raise OSError("killed")
        n_written.append(1)
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(imported.files, "write", write_or_die)
        with pytest.raises(Exception, match="killed"):
            caption(run)
    assert not imported.is_complete(run, human_of(run))
    caption(run)
    assert bytes_of(folder_of(run)) == undisturbed


def test_a_prompt_may_name_imported_captions(tmp_path, calls):
    rows = plain_rows(2)
    write_lines(tmp_path, {"image_hash": hex_hash(rows[1]), "text": ["a dog", "it"]})
    again = dataclasses.replace(SHORT, name="again", prompt="again: {caption:human}")
    run = importing_run(tmp_path, {"a": rows}, more=(again, SHORT))
    assert caption(run) == {
        "captions_written": 2 + 2 + 1,  # human, short, again
        "captions_waiting": 1,
        "images_encoded": 3,
        "caption_slots": 8,
    }
    tables = CaptionTables.open(run.captions(again))
    (row,) = tables.rows(run.lots[0])
    assert row.image_hash == content_hash(rows[1].image)
    assert row.text == "again: a dog 1 7 9"
    calls.clear()
    assert caption(run) == {"captions_waiting": 1, "lots_skipped": 2}
    assert calls == []


def test_what_made_the_captions_names_the_files_and_their_digests(tmp_path):
    rows = plain_rows(1)
    write_lines(tmp_path, *lines_for(rows), name="b.jsonl")
    write_lines(tmp_path, name="a.jsonl")
    run = importing_run(tmp_path, {"a": rows})
    describe(run, human_of(run))
    found = json.loads((folder_of(run) / "granularity.json").read_text())
    assert found["model_digest"] == run.model_digest(human_of(run))
    assert found["files"] == [
        {
            "name": name,
            "n_bytes": len(data),
            "digest": content_hash(data).hex(),
        }
        for name, data in bytes_of(tmp_path / "captions").items()
    ]


# Through the command line, with the recipe of the demo.


@pytest.fixture
def crawl(tmp_path):
    write_shard(tmp_path / "crawl/a.tar", plain_rows(3))
    return str(tmp_path / "crawl/*.tar")


def arguments(tmp_path, crawl, names=("human",), **fields):
    """`caption` with a recipe that says the same of granularities with these names."""
    fields = {"checkpoint": str(tmp_path / "captions/*")} | fields
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import dataclasses\n"
        "from curation_configs import demo\n"
        "from pipeline.config.curation import Granularity\n"
        "def get_config():\n"
        f"    fields = {fields!r} | {{'captioner': 'imported'}}\n"
        f"    found = tuple(Granularity(name, **fields) for name in {names!r})\n"
        "    return dataclasses.replace(demo.get_config(), granularities=found)\n"
    )
    return [
        *("caption", "--granularity", names[0], "--config", str(recipe)),
        *("--output", str(tmp_path / "run"), "--input", crawl),
        *("--eval", f"e={crawl}", "--seeds", f"s={crawl}"),
    ]


def test_the_command_imports_once_and_then_has_nothing_to_do(tmp_path, crawl, capsys):
    rows = plain_rows(3)
    write_lines(tmp_path, *lines_for(rows[:2]), {"image_hash": "0" * 32, "text": "t"})
    command = arguments(tmp_path, crawl)
    run = command_line.open_run(command)
    write_tables(run, run.lots[0], rows)
    command_line.main(command)
    done = (
        "caption: captions_checked 2, captions_unmatched 1, captions_written 2,"
        " texts_detected 2\n"
    )
    assert capsys.readouterr().out == done
    assert texts_of(run, run.lots[0]) == ["human 0", "human 1"]
    work = stage_progress.work_of("caption", run, run.config.granularities)
    assert (work.n_total, work.count_done()) == (1, 1)
    before = bytes_of(folder_of(run))
    command_line.main(command)
    assert capsys.readouterr().out == "caption: nothing to do\n"
    assert bytes_of(folder_of(run)) == before


def test_the_counts_of_several_imports_are_added_up(tmp_path, crawl, capsys):
    rows = plain_rows(3)
    write_lines(tmp_path, *lines_for(rows[:2]))
    command = arguments(tmp_path, crawl, names=("human", "again"))
    run = command_line.open_run(command)
    write_tables(run, run.lots[0], rows)
    command_line.main([*command, "--granularity", "again"])
    assert capsys.readouterr().out == (
        "caption: captions_checked 4, captions_flagged 2, captions_written 4,"
        " flagged_equals_other 2, texts_detected 2\n"
    )


@pytest.mark.parametrize("names", [("human",), ("human", "again")])
def test_an_import_that_names_no_kept_image_fails_each_time(
    tmp_path, crawl, capsys, names
):
    write_lines(tmp_path, *({"image_hash": f"{i:032x}", "text": "t"} for i in range(3)))
    command = arguments(tmp_path, crawl, names=names)
    command += [word for name in names[1:] for word in ("--granularity", name)]
    run = command_line.open_run(command)
    write_tables(run, run.lots[0], plain_rows(3))
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            command_line.main(command)
        assert stopped.value.code == 1
        error = capsys.readouterr().err.splitlines()[-1]
        for name in names:
            assert f"granularity {name!r}: no row of checkpoint=" in error
        assert "names a kept image (0 repeated, 3 unmatched, 0 unreadable)" in error


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ({"url": "u", "text": "t"}, {"checkpoint": "/no/*.jsonl"}, "'/no/*.jsonl' of"),
        ({"url": "u", "text": "t"}, {"prompt": "cap en"}, "prompt='cap en': expected"),
        ({"url": "u", "text": "t"}, {"digest": "00"}, "digest='00' of granularity"),
        ({"url": "u", "words": "t"}, {}, "a.jsonl: expected one usable column text"),
        ({"name": "u", "text": "t"}, {}, "found none among name, text"),
        ({"url": "u", "sample_id": "s", "text": "t"}, {}, "found url and sample_id"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_any_work(
    tmp_path, crawl, capsys, line, fields, expected
):
    write_lines(tmp_path, line)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments(tmp_path, crawl, **fields))
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert expected in error
    assert not (tmp_path / "run").exists()
