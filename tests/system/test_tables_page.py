"""The queries of docs/tables.md answer on a run folder."""

import dataclasses

import duckdb
import pytest

from pipeline.engine.lot_plan import LotPlan, PlannedLot
from pipeline.engine.run_folder import RunFolder
from pipeline.records import Language
from pipeline.storage.tables import to_table
from tests.pipeline.captioning.test_flag_stage import flag
from tests.support import docs_commands
from tests.support.tiny_run import (
    LONG,
    SHORT,
    make_run,
    plain_rows,
    write_captions,
)

PAGE = docs_commands.ROOT / "docs" / "tables.md"
VIEWS, *QUESTIONS = docs_commands.blocks(PAGE, "sql")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """Two lots, of which four pairs of six are kept."""
    rows = {"a": plain_rows(3), "b": plain_rows(3, first=10)}
    rows["b"][0] = dataclasses.replace(rows["b"][0], outcome="few_words")
    rows["a"][1] = dataclasses.replace(rows["a"][1], outcome="low_alignment")
    made = make_run(tmp_path_factory.mktemp("tables"), rows)
    lots = [
        PlannedLot(lot.name, "pool", "web", "", "", ((lot.shards[0].uri, ""),))
        for lot in made.lots
    ]
    LotPlan(tuple(lots)).write(made.root)
    for lot in made.lots:
        languages = to_table([Language("en", 1.0)] * 3, Language)
        made.languages(lot.source).write(lot.name, languages)
    write_captions(made, rows, (SHORT, LONG))
    flag(made)
    return made


@pytest.fixture(scope="module")
def database(run):
    with duckdb.connect() as connection:
        connection.execute(VIEWS.replace("RUN/", f"{run.root}/"))
        yield connection


def test_the_page_answers_ten_questions():
    assert len(QUESTIONS) >= 10


@pytest.mark.parametrize(
    "query", QUESTIONS, ids=lambda query: query.split("\n")[0][:60]
)
def test_each_question_is_answered(database, query):
    rows = database.execute(query).fetchall()
    if "error != ''" not in query:  # here all can be read
        assert rows


def test_answers_are_those_of_the_run(database):
    outcomes = database.execute(QUESTIONS[0]).fetchall()
    assert outcomes == [
        ("web", "kept", 4),
        ("web", "few_words", 1),
        ("web", "low_alignment", 1),
    ]
    texts = database.execute(
        "SELECT count(*) FROM pairs JOIN captions USING (image_hash)"
    ).fetchone()
    assert texts == (8,)
