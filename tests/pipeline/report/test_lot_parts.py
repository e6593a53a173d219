"""Parts of the report: what each lot adds to the page, made once and on any worker."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine.run_folder import RunFolder
from pipeline.records import DropReason
from pipeline.report import joined_parts, lot_parts, part_stage
from pipeline.report.charts import count_by_outcome
from pipeline.report.decision_scan import scan_decisions
from pipeline.report.lot_parts import Bounds, PartMaker
from pipeline.report.page_data import choose_bounds
from pipeline.report.pair_facts import PairFacts, References, read_pairs
from pipeline.storage.tables import LotTables
from tests.support.report_runs import ledger_of, make_run, random_rows, write_page
from tests.support.served_store import serve, upload
from tests.support.tiny_run import bytes_of, run_stage

N_LOTS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    rows = random_rows(90)
    shards = [rows[first : first + 15] for first in range(0, 90, 15)]
    return make_run(tmp_path_factory.mktemp("parts"), shards)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Names of lots of which a part is made."""
    names: list[str] = []
    make = PartMaker.make

    def note(maker, lot):
        names.append(lot.name)
        make(maker, lot)

    monkeypatch.setattr(PartMaker, "make", note)
    return names


def bounds_of(run: RunFolder) -> Bounds:
    counts = count_by_outcome(ledger_of(run))
    return choose_bounds(counts, References.open(run))


def test_a_part_is_made_once_and_again_when_its_decisions_change(run, made):
    first = write_page(run).read_bytes()
    made.clear()
    assert write_page(run).read_bytes() == first
    assert made == []
    lot = run.lots[2]
    table = run.decisions.read(lot.name)
    changed = table.set_column(4, "detail", pa.array(["x"] * table.num_rows))
    facts = run.decisions.read_summary(lot.name)
    extra = {name: facts[name] for name in ("pool", "outcomes")}
    run.decisions.replace(lot.name, changed, extra)
    write_page(run)
    assert made == [lot.name]
    run.decisions.replace(lot.name, table, extra)
    assert write_page(run).read_bytes() == first


def test_a_part_says_of_a_pair_what_its_tables_say(run):
    references = References.open(run)
    scan, location_to_facts = scan_decisions(run, bounds_of(run), references)
    assert scan.is_census
    expected = read_pairs(run, location_to_facts, references)
    assert location_to_facts.keys() == expected.keys()
    for place, one in expected.items():
        assert comparable(location_to_facts[place]) == comparable(one)
    drops = [drop for one in location_to_facts.values() for drop in one.drops if drop]
    assert drops
    assert all(isinstance(drop.reason, DropReason) for drop in drops)


def comparable(one: PairFacts) -> tuple[PairFacts, str]:
    """The facts of a pair, with the numbers of its drops as text: some are NaN."""
    drops = [
        drop and (str(drop.reason), float(drop.value), float(drop.threshold))
        for drop in one.drops
    ]
    return dataclasses.replace(one, drops=()), str(drops)


def test_workers_make_the_parts_that_the_launcher_would_make(run):
    write_page(run)
    folder = Path(lot_parts.tables(run).folder)
    expected = bytes_of(folder)
    lot_parts.tables(run).delete(lot_parts.tables(run).lot_names())
    run_stage(part_stage.MakeParts(run, bounds_of(run)), run.lots)
    assert bytes_of(folder) == expected
    assert not lot_parts.find_missing(run, bounds_of(run))


def test_a_second_scan_reads_a_part_and_a_summary_of_each_lot(run):
    write_page(run)
    bounds, references = bounds_of(run), References.open(run)
    with serve("s3") as store:
        upload(store, Path(run.root), "run")
        stored = dataclasses.replace(run, root="s3://bucket/run")
        store.forget_requests()
        scan, _ = scan_decisions(stored, bounds, references)
        # Summaries of decisions and of parts, parts, listings and two looks for caches.
        assert sum(store.counts().values()) <= 4 * N_LOTS + 8
    assert scan == scan_decisions(run, bounds, references)[0]


def test_parts_of_many_lots_come_from_one_file(run, monkeypatch):
    monkeypatch.setattr(joined_parts, "_MIN_CACHED", 1)
    bounds, references = bounds_of(run), References.open(run)
    first = scan_decisions(run, bounds, references)
    read: list[str] = []
    read_table = LotTables.read

    def note(tables, name, columns=None):
        read.append(name)
        return read_table(tables, name, columns)

    monkeypatch.setattr(LotTables, "read", note)
    again = scan_decisions(run, bounds, references)
    assert (again[0], again[1].keys()) == (first[0], first[1].keys())
    assert read == []
    parts, lot = lot_parts.tables(run), run.lots[1]
    summary, table = parts.read_summary(lot.name), read_table(parts, lot.name)
    parts.write(lot.name, table.slice(1), summary | {"sha256": "another"})
    _, left = scan_decisions(run, bounds, references)
    parts.write(lot.name, table, summary)
    assert read == [lot.name]
    assert len(left) == len(first[1]) - 1


def test_bounds_leave_enough_pairs_and_little_more():
    few = Bounds.of({"kept": 96, "unreadable": 50}, 10_000)
    assert set(few.to_json()) == {10_000, 1.0}
    many = Bounds.of({"kept": 10**8, "language": 9 * 10**8, "unreadable": 5}, 10_000)
    assert 12_500 <= many.sample * 10**9 < 25_000
    assert 96 <= many.examples[0] * 10**8 < 192
    more = Bounds.of({"kept": 2 * 10**8, "language": 10**9, "unreadable": 7}, 10_000)
    assert more.are_in(many.to_json())
    assert not many.are_in(more.to_json())
