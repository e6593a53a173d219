"""Entries of a list that name no pair of a run are told from the others."""

from pipeline.engine.removals import Removals
from pipeline.removal.listed_entries import ListedEntries

OLD = [("host", "old.org")]
LISTED = [("url", "a.org/1"), ("host", "b.org"), ("url", "slip.org/1"), *OLD]


def test_new_entries_without_a_pair_are_counted_once_by_kind_and_the_first_named(
    tmp_path,
):
    root = str(tmp_path)
    before = Removals().with_entries(root, OLD)
    after = before.with_entries(root, LISTED)
    names = after.open_names(root)
    matched = names.hashes_of(LISTED[:1] * 2)
    opened = (names, before.open_names(root), matched)
    found = ListedEntries.of(LISTED * 2, *opened)
    assert found.kind_to_n == {"url": 2, "host": 2}
    expected = "2 of 4 entries name no pair of this run (host 1, url 1): "
    assert [*found.describe_unknown()] == [f"{expected}host:b.org, slip.org/1"]
    few = ListedEntries.of(LISTED[:1] + OLD, *opened)
    assert [*few.describe_unknown()] == []
    more = [("url", f"a.org/{n}") for n in range(5)]
    names = after.with_entries(root, more).open_names(root)
    found = ListedEntries.of(more, names, *opened[1:])
    expected = "4 of 5 entries name no pair of this run (url 4): "
    assert [*found.describe_unknown()] == [f"{expected}a.org/0, a.org/2, ..."]
