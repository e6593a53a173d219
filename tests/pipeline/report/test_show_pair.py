"""`show` and `find`, over runs made by hand."""

import dataclasses

import numpy as np
import pytest

from pipeline import records
from pipeline.config.curation import ExportConfig
from pipeline.engine import id_index
from pipeline.engine.run_folder import RunFolder
from pipeline.export import stage as export
from pipeline.export.publishing import publish
from pipeline.report import find_pairs, show_pair
from pipeline.report.find_pairs import Question, ScoreRange, find
from pipeline.report.pair_facts import PairFacts
from pipeline.report.sampling import PairLocation
from pipeline.storage.tables import LotTables, from_table
from tests.support.report_runs import SELECTION, ScoredRow, make_run, random_rows
from tests.support.served_store import serve, upload
from tests.support.tiny_run import (
    SHORT,
    bytes_of,
    encoded,
    plain_rows,
    run_stage,
    write_captions,
)
from tests.support.tiny_run import make_run as make_captioned_run


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> RunFolder:
    rows = [
        ScoredRow("a Green bottle of glass", angle=0.7, color=(1, 2, 3)),
        ScoredRow("a gray wall", score=0.1, url="https://example.org/wall"),
        ScoredRow("ein roter Kreis", code="de"),
        ScoredRow("a green \u202efield\x1b[2J", angle=0.5),
        ScoredRow(error="truncated"),
    ]
    return make_run(tmp_path_factory.mktemp("lookup"), [rows[:3], rows[3:]])


def ids_of(run: RunFolder) -> list[str]:
    tables = [run.pairs(lot.source).read(lot.name) for lot in run.lots]
    return [i.hex() for table in tables for i in table["sample_id"].to_pylist()]


def found(run: RunFolder, **question) -> list[str]:
    return [one.alt_text for one in find(run, Question(**question))]


def test_show_prints_scores_decision_and_location(curated):
    lines = list(show_pair.show(curated, ids_of(curated)[1], ""))
    said = {line[:22].strip(): line[23:] for line in lines}
    assert said["alt text"] == "a gray wall"
    assert said["decision"] == "low_alignment: 0.1, bound 0.2"
    assert said["address"] == "https://example.org/wall"
    assert said["nearest evaluation"].startswith("evaluation:wren ")
    assert said["seed"].startswith("seeds:rose ")
    assert said["image"].startswith("24 x 16 png")


def test_show_reads_the_tables_of_the_lot_that_holds_the_pair_and_no_others(tmp_path):
    rows = [[ScoredRow(f"a wall {n}", color=(n, 0, 0))] for n in range(20)]
    made = make_run(tmp_path, rows, keep_all=True)
    for lot in made.lots:
        add_index(made.pairs(lot.source), lot.name)
    with serve("s3") as store:
        upload(store, tmp_path / "run", "run")
        stored = dataclasses.replace(made, root="s3://bucket/run")
        sample_id = bytes.fromhex(ids_of(made)[7])
        store.forget_requests()
        assert show_pair.find_locations(stored, sample_id) == [PairLocation(7, 0)]
        assert sum(store.counts().values()) <= 50  # 20 indexes, 20 summaries, a table
        said = "\n".join(show_pair.show(stored, ids_of(made)[7], ""))
        assert "a wall 7" in said


def add_index(tables: LotTables, name: str) -> None:
    """What `score` adds to a table of pairs when it seals a lot."""
    table = tables.read(name)
    n_buckets = id_index.count_buckets(table.num_rows)
    rows = id_index.write_beside([table], tables, name, n_buckets)
    tables.write_parts(name, table.schema, rows, {id_index.N_BUCKETS: n_buckets})


def test_show_writes_the_image_unchanged_from_its_shard(curated, tmp_path):
    path = tmp_path / "image.png"
    list(show_pair.show(curated, ids_of(curated)[0], str(path)))
    assert path.read_bytes() == encoded((1, 2, 3), (24, 16))


def test_show_of_an_unreadable_pair_says_why_and_has_no_image(curated, tmp_path):
    sample_id = ids_of(curated)[4]
    lines = list(show_pair.show(curated, sample_id, ""))
    assert any(line.split() == ["unreadable", "truncated"] for line in lines)
    with pytest.raises(ValueError, match="expected an image: truncated"):
        list(show_pair.show(curated, sample_id, str(tmp_path / "x.png")))


@pytest.mark.parametrize("text", ["xyz", "abcd", "00" * 16])
def test_an_id_of_no_pair_is_refused(curated, text):
    with pytest.raises(ValueError, match="expected"):
        list(show_pair.show(curated, text, ""))


@pytest.mark.slow  # it writes shards, for which TensorFlow has to be loaded
def test_show_finds_the_training_record_even_if_some_pairs_are_not_exported(tmp_path):
    rows = plain_rows(6)
    rows[1] = dataclasses.replace(rows[1], outcome="language")
    captioned = [rows[0], *rows[3:]]  # of rows[2] there is no caption
    export_config = ExportConfig(samples_per_shard=2, required_granularities=("short",))
    made = make_captioned_run(
        tmp_path, {"0": rows}, granularities=(SHORT,), export=export_config
    )
    write_captions(made, {"0": captioned}, [SHORT])
    run_stage(export.Export(made), made.lots)
    publish(made)
    before = bytes_of(tmp_path / "run")
    lot = made.lots[0]
    for row, expected in ((0, 0), (3, 1), (5, 3)):
        ids = made.pairs(lot.source).read(lot.name, ["sample_id"])["sample_id"]
        one = _kept(made, row)
        record = show_pair.find_record(made, one)
        assert record is not None
        assert record.position + 2 * _shard_number(record.shard) == expected
        assert record.sample.sample_id == ids[row].as_py()
        assert record.sample.captions == {"short": (f"cap en {row} 7 9",)}
    assert show_pair.find_record(made, _kept(made, 2)) is None
    assert bytes_of(tmp_path / "run") == before


def _shard_number(name: str) -> int:
    return int(name.split("-")[-2])


def _kept(made: RunFolder, row: int) -> PairFacts:
    lot = made.lots[0]
    pairs = from_table(made.pairs(lot.source).read(lot.name), records.Pair)
    decisions = from_table(made.decisions.read(lot.name), records.Decision)
    language = records.Language("en", 1.0)
    place = PairLocation(0, row)
    return PairFacts(place, lot, pairs[row], 2, decisions[row], language, 0.25)


def test_find_by_text_reason_score_and_seed(curated):
    assert found(curated, text="GREEN") == [
        "a Green bottle of glass",
        "a green \u202efield\x1b[2J",
    ]
    assert found(curated, reason="language") == ["ein roter Kreis"]
    low = ScoreRange.parse("alignment_score=:0.2")
    assert found(curated, scores=(low,)) == ["a gray wall"]
    assert len(found(curated, seed="seeds")) == 2
    assert found(curated, text="green", reason="unreadable") == []


def test_an_unreadable_pair_is_found_with_its_shard_and_the_reason(curated):
    (line,) = find_pairs.lines(curated, Question(reason="unreadable"), "", 5)
    assert line.endswith(f"{curated.lots[1].shards[0].uri}: truncated")


def test_a_line_of_find_has_no_hidden_characters(curated):
    lines = list(find_pairs.lines(curated, Question(text="field"), "", 5))
    assert lines[0].endswith("a green [U+202E]field[U+001B][2J")


def test_find_by_similarity_agrees_with_brute_force(tmp_path, monkeypatch):
    made = make_run(tmp_path, [random_rows(40), random_rows(25)], keep_all=True)
    query = np.array([np.cos(0.4), np.sin(0.4)], np.float32)
    monkeypatch.setattr(find_pairs, "_embed", lambda run, image: query)
    got = find_pairs.find_nearest(made, Question(), b"", 7)
    vectors = np.concatenate(
        [
            np.stack(
                made.embeddings(u.source).read(u.name)["embedding"].to_numpy()
            ).astype(np.float32)
            for u in made.lots
        ]
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    best = np.sort(vectors @ query)[::-1][:7]
    np.testing.assert_allclose([one.similarity for one in got], best, rtol=1e-6)


@pytest.mark.parametrize(
    "text", ["alignment_score", "size=1:2", "value=a:b", "value=1", "=1:2"]
)
def test_a_wrong_range_is_named(text):
    with pytest.raises(ValueError, match="expected NAME=LOW:HIGH"):
        ScoreRange.parse(text)


@pytest.mark.parametrize("text", ["alignment_score=0.9:0.1", "value=nan:1"])
def test_an_empty_range_is_named(text):
    with pytest.raises(ValueError, match=f"{text}: expected LOW at most HIGH"):
        ScoreRange.parse(text)


def test_an_unknown_seed_set_is_named(curated):
    assert len(list(find_pairs.lines(curated, Question(seed="seeds"), "", 5))) == 2
    with pytest.raises(ValueError, match="--seed rose: expected one of seeds"):
        list(find_pairs.lines(curated, Question(seed="rose"), "", 5))
    without = dataclasses.replace(curated, seed_lots=())
    with pytest.raises(ValueError, match="--seed rose: expected a run with seed sets"):
        list(find_pairs.lines(without, Question(seed="rose"), "", 5))


@pytest.mark.parametrize("limit", [0, -1])
@pytest.mark.parametrize("like", ["", "image.png"])
def test_a_limit_below_one_is_named(curated, limit, like):
    with pytest.raises(ValueError, match=f"--limit {limit}: expected at least 1"):
        list(find_pairs.lines(curated, Question(), like, limit))


def test_a_wrong_reason_is_named():
    with pytest.raises(ValueError, match="--reason dull: expected one of kept"):
        Question(reason="dull")


def test_undecided_pairs_can_be_shown(tmp_path):
    made = make_run(tmp_path, [[ScoredRow()]], keep_all=True)
    other = dataclasses.replace(SELECTION, drop_exact_duplicates=False)
    config = dataclasses.replace(made.config, selection=other)
    undecided = dataclasses.replace(made, config=config)
    lines = list(show_pair.show(undecided, ids_of(made)[0], ""))
    assert any(line.split() == ["decision", "undecided"] for line in lines)
