"""What the launcher asks a store for, counted: summaries and listings, and no table.

Small runs in a simulated store, of many lots each. Jobs are not run: what they would
write is put there.
"""

import collections

import pytest

from pipeline.engine import stage_runner
from pipeline.run import main
from pipeline.storage import (
    object_clients,
    object_listings,
    recent_tables,
    remembered_listings,
)
from tests.support import simulated_run, simulated_store
from tests.support.simulated_run import CRAWL, OUTPUT, SimulatedRun
from tests.support.simulated_store import Counts, Numbered

FEW, MANY = 100, 300  # lots of one shard; a page of a listing holds the files of either
COMMANDS = ("status", "curate", "export")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("template")


@pytest.fixture(scope="module")
def template(scratch):
    return simulated_run.make_template(scratch)


@pytest.fixture
def counted(scratch, template, monkeypatch):
    """Makes a run of so many lots, and gives the requests of each command by name."""

    def count(n_lots: int) -> dict[str, Counts]:
        with simulated_store.start(Numbered(CRAWL, n_lots), latency_s=0) as store:
            for name, value in store.environment().items():
                monkeypatch.setenv(name, value)
            forget()
            run = SimulatedRun(store, scratch, template, per_lot=1)
            run.fill()

            def run_job(root, stage, transform, options):
                with remembered_listings.not_kept():
                    run.do_job(stage)
                return {}

            def requests_of(command: str) -> Counts:
                forget()
                store.take_counts()
                is_look = command == "status"
                main([command, *(("--output", OUTPUT) if is_look else run.flags)])
                return store.take_counts()

            monkeypatch.setattr(stage_runner, "run_job", run_job)
            found = {command: requests_of(command) for command in COMMANDS}
            run.add_shards(1)
            found["growth"] = requests_of("curate")
            found["after growth"] = requests_of("curate")
        object_clients.forget_clients()
        return found

    return count


def forget() -> None:
    """Begins as another process does."""
    object_clients.forget_clients()
    object_listings._place_to_ends.clear()
    recent_tables.forget()


def operations(counts: Counts) -> dict[str, int]:
    """Requests by operation, but for pictures on the page: of pairs by chance."""
    found: collections.Counter[str] = collections.Counter()
    for (operation, folder), n in counts.items():
        found[operation] += n if folder != CRAWL else 0
    return dict(found)


@pytest.mark.slow
def test_more_lots_are_no_more_requests_but_for_summaries_that_changed(counted):
    few, many = counted(FEW), counted(MANY)
    for name in (*COMMANDS, "after growth"):
        assert operations(few[name]) == operations(many[name]), name
    more = many["growth"]
    more.subtract(few["growth"])
    changed = {key: n for key, n in more.items() if n and key[1] != CRAWL}
    ((operation, folder),) = changed
    # A pool that grew is decided on again, so that the summaries of all decisions say
    # another pool; each is read once.
    assert (operation, folder.split("/")[1]) == ("get", "decisions")
    assert changed[operation, folder] == MANY - FEW
