"""The record of removals: small, whatever it names, and read by every worker."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import removals
from pipeline.engine.removals import Removals
from pipeline.removal.stage import FindRemoved, RewriteLots
from pipeline.sources import drop_tables

N = 1_000_000


def pairs_of(*numbers: int) -> pa.Table:
    names = [n.to_bytes(16, "big") for n in numbers]
    urls = [f"https://www.h{n}.org/1.png" for n in numbers]
    return pa.table({"url": urls, "image_hash": names, "sample_id": names})


def test_a_million_removed_pairs_leave_the_record_and_the_jobs_small(tmp_path):
    root = str(tmp_path)
    entries = (("sample_id", f"{n:032x}") for n in range(N))
    found = Removals().with_entries(root, entries)
    found.write(root)
    read = Removals.read(root)
    assert read == found
    assert (tmp_path / removals.NAME).stat().st_size < 1_000
    (table,) = (tmp_path / removals.TABLES).iterdir()
    assert table.stat().st_size == N * drop_tables.DIGEST_BYTES
    works = [("web-00000-abc", ())]
    jobs = (FindRemoved(root, read, works, "path"), RewriteLots(root, []))
    assert max(len(pickle.dumps(job)) for job in jobs) < 10_000
    names = read.open_names(root)
    assert isinstance(names.hashes, np.memmap)
    some = pairs_of(0, N - 1, N, 7)
    np.testing.assert_array_equal(names.matches(some), [True, True, False, True])


def test_more_names_join_those_of_before_and_the_same_change_nothing(tmp_path):
    root = str(tmp_path)
    first = Removals().with_entries(root, [("host", "h1.org"), ("host", "h1.org")])
    first.write(root)
    assert first.with_entries(root, [("host", "h1.org")]) == first
    both = first.with_entries(root, [("sample_id", f"{2:032x}")])
    found = both.open_names(root).matches(pairs_of(1, 2, 3))
    np.testing.assert_array_equal(found, [True, True, False])
    assert len(list((tmp_path / removals.TABLES).iterdir())) == 2
    removals.delete_other_tables(root)
    assert [p.name for p in (tmp_path / removals.TABLES).iterdir()] == [first.table]


def test_nothing_is_removed_without_a_record(tmp_path):
    names = Removals.read(str(tmp_path)).open_names(str(tmp_path))
    assert not names.matches(pairs_of(1, 2)).any()
    assert Removals().describe() == ""


def damage(path: str, how: str) -> None:
    if how == "gone":
        os.remove(path)
    elif how == "cut":
        os.truncate(path, 16)
    else:
        with open(path, "r+b") as file:
            file.write(bytes(16))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("gone", "but it is not there"),
        ("cut", "but it has 16 bytes, not 32"),
        ("changed", "but it holds something else than its name says"),
    ],
)
def test_a_damaged_table_is_refused_until_all_its_lists_are_given_again(
    tmp_path, how, expected
):
    root, entries = str(tmp_path), [("host", "h1.org"), ("host", "h2.org")]
    made = Removals().with_entries(root, entries)
    made.write(root)
    older = dataclasses.replace(made, n_hashes=None)
    path = os.path.join(root, removals.TABLES, made.table)
    made.expect_table(root)
    damage(path, how)
    with pytest.raises(ValueError, match=f"{path}: .* removed pairs, {expected}; put"):
        made.open_names(root)
    checked = older if how == "changed" else made  # its size is right
    with pytest.raises(ValueError, match="expected the table of removed pairs, but"):
        checked.expect_table(root)
    with pytest.raises(ValueError, match="lists of before and no other"):
        made.restore_table(root, entries[:1])
    made.restore_table(root, entries)
    assert made.open_names(root).matches(pairs_of(1, 2, 3)).tolist() == [1, 1, 0]
    older.expect_table(root)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"unfinished": null}'])
def test_a_damaged_record_is_one_line_that_says_what_to_do(tmp_path, content):
    (tmp_path / removals.NAME).write_text(content)
    expected = f"--output {tmp_path}: removed.json is damaged: .* Put a copy of it back"
    with pytest.raises(ValueError, match=expected):
        Removals.read(str(tmp_path))


def test_a_record_of_a_version_that_noted_no_size_is_read(tmp_path):
    root = str(tmp_path)
    made = Removals().with_entries(root, [("host", "h1.org")])
    made.write(root)
    content = json.loads((tmp_path / removals.NAME).read_text())
    assert content.pop("n_hashes") == 1
    (tmp_path / removals.NAME).write_text(json.dumps(content))
    assert Removals.read(root) == made


def test_listed_sources_and_shards_that_were_removed_are_told_in_a_line_each():
    shards = frozenset({("web", "b"), ("web", "gone"), ("old", "c")})
    found = Removals(sources=frozenset({"old"}), shards=shards)
    assert [*found.describe_left_out({"web": ["a", "b"], "old": ["c"]})] == [
        "1 listed source was removed before and is left out: old",
        "1 listed shard was removed before and is left out: b",
    ]
    assert [*found.describe_left_out({"web": ["a"]})] == []
