"""Which shards and sources of a run a command means by their names."""

import types

import pytest

from pipeline.commands import remove
from pipeline.engine.lot_plan import LotPlan, PlannedLot
from pipeline.engine.removals import Removals

URIS = ("crawl/[ab].tar", "crawl/a.tar", "crawl/c.tar")
PLACES = tuple((uri, "") for uri in URIS)
PLAN = LotPlan((PlannedLot("web-00000-1", "pool", "web", "", "", PLACES),))
RUN = types.SimpleNamespace(plan=PLAN)
NONE = Removals()


def test_a_shard_is_named_or_matched():
    assert remove._shards(RUN, "crawl/c.tar", NONE) == {("web", "crawl/c.tar")}
    assert remove._shards(RUN, "crawl/[[]*", NONE) == {("web", "crawl/[ab].tar")}
    assert len(remove._shards(RUN, "**.tar", NONE)) == 3


def test_a_name_that_matches_other_shards_is_refused():
    expected = (
        r"--shards crawl/\[ab\]\.tar: expected a pattern or a name, but it matches"
    )
    with pytest.raises(
        ValueError, match=expected + r".*; crawl/\[\[\]ab\].tar is the na"
    ):
        remove._shards(RUN, "crawl/[ab].tar", NONE)


@pytest.mark.parametrize("text", ["/data/crawl/c.tar", "./crawl/c.tar"])
def test_a_path_in_other_words_is_refused_with_one_in_those_of_the_run(text):
    expected = r"of the run, written as the run has them: crawl/\[ab\]\.tar"
    with pytest.raises(ValueError, match=expected):
        remove._shards(RUN, text, NONE)


def test_what_was_removed_before_is_still_known():
    before = Removals(
        sources=frozenset({"old"}), shards=frozenset({("web", "crawl/d.tar")})
    )
    assert remove._shards(RUN, "*/d.tar", before) == before.shards
    assert remove._sources(RUN, ["old"], before) == before.sources
    with pytest.raises(ValueError, match="--source new: expected one of web, old"):
        remove._sources(RUN, ["new"], before)
