"""Tests of opt-outs and drop lists: they come first and hold for every source."""

import dataclasses
import os
import pathlib
import tempfile
import time

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.config.selection import SelectionConfig
from pipeline.engine.run_folder import RunFolder
from pipeline.records import content_hash
from pipeline.selection import rights, rules
from pipeline.selection.lot_decisions import LotDecisions, open_lot
from pipeline.sources import drop_lists, drop_tables
from pipeline.sources.drop_lists import DropList
from tests.support.score_tables import (
    Row,
    make_run,
    outcomes,
    read_decisions,
    sample_id,
)

DIRECTIVES = SelectionConfig().opt_out_directives


def listed(tmp_path, *lines: str) -> tuple[drop_lists.ListFile, ...]:
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))


def kinds(files, *urls: str, image_hash=b"i" * 16, sample_id=b"s" * 16) -> list[str]:
    n = len(urls)
    columns = {
        "url": urls,
        "image_hash": [image_hash] * n,
        "sample_id": [sample_id] * n,
    }
    return open_list(files).kinds_of(pa.table(columns)).tolist()


def open_list(files) -> DropList:
    with tempfile.TemporaryDirectory() as root:
        return DropList.open(drop_lists.build(files, root))


# Opt-outs


@pytest.mark.parametrize(
    ("robots", "directive"),
    [
        ("noai", "noai"),
        ("noindex, NoAI", "noai"),
        (" index,noimageai ", "noimageai"),
        ("somebot: noindex", "noindex"),
        ("max-image-preview:none, noimageindex", "noimageindex"),
        ("", ""),
        ("all", ""),
        ("noainoai", ""),
        ("no ai", ""),
        ("x" * 4096, ""),
    ],
)
def test_an_opt_out_is_a_whole_directive_in_any_case_for_any_robot(robots, directive):
    assert rights.opt_out(robots, DIRECTIVES) == directive


def test_opt_outs_are_dropped_first_and_from_sources_to_keep_whole(tmp_path):
    rows = [Row("x", robots="noai"), Row("x", robots="all"), Row(error="broken")]
    config = SelectionConfig(drop_rules=(rules.FewWords(2),))
    shards = {"web/1": rows, "city/1": rows}
    run = make_run(str(tmp_path), config, shards, keep_all=["city"])
    assert outcomes(run) == {
        "web/1": ["opt_out", "few_words", "unreadable"],
        "city/1": ["opt_out", "kept", "unreadable"],
    }
    decision = read_decisions(run)["web/1"][0]
    assert (decision.detail, decision.value) == ("noai", None)


def test_a_recipe_may_switch_opt_outs_off_or_name_its_own(tmp_path):
    shards = {"web/1": [Row(robots="noai"), Row(robots="noarchive")]}
    off = SelectionConfig(opt_out_directives=())
    assert outcomes(make_run(str(tmp_path), off, shards))["web/1"] == ["kept"] * 2
    own = SelectionConfig(opt_out_directives=("noarchive",))
    found = outcomes(make_run(str(tmp_path), own, shards))["web/1"]
    assert found == ["kept", "opt_out"]


def test_a_directive_that_can_match_nothing_is_an_error():
    with pytest.raises(ValueError, match="opt_out_directives='NoAI': expected lower"):
        SelectionConfig(opt_out_directives=("NoAI",))


# Drop lists


def test_an_address_matches_whatever_its_scheme_fragment_and_case_of_host(tmp_path):
    files = listed(tmp_path, "http://User@Example.org/A.jpg?b=1#top", "https://b.org")
    same = ("https://example.org/A.jpg?b=1", "HTTP://EXAMPLE.ORG/A.jpg?b=1#x")
    assert kinds(files, *same, "ftp://b.org/") == ["url"] * 3
    others = ("https://example.org/a.jpg?b=1", "https://example.org/A.jpg", "")
    assert kinds(files, *others, "https://b.org/c", "no address") == [""] * 5


def test_an_address_is_matched_as_crawls_have_it(tmp_path):
    files = listed(tmp_path, "host:a.org", "https://b.org/a%20b.jpg")
    urls = ["https://a.org/my photo.jpg", "//cdn.a.org/1.jpg", "a.org/1.jpg", "a.org"]
    assert kinds(files, *urls, " https://a.org/\n") == ["host"] * 5
    assert kinds(files, "https://b.org/a b.jpg") == ["url"]
    assert kinds(files, "a.orgs/1.jpg", "photo of a.org", "data:a.org") == [""] * 3


def test_a_host_covers_its_subdomains_and_ports_and_no_other_host(tmp_path):
    files = listed(tmp_path, "host:Example.org", "host:a.b.net")
    covered = ("https://example.org", "http://x.y.example.org:8080/z", "a://A.b.net./")
    assert kinds(files, *covered) == ["host"] * 3
    others = ("https://badexample.org/", "https://b.net/", "https://x.com/example.org")
    assert kinds(files, *others, "https://example.org@other.org/") == [""] * 4


def test_hashes_name_an_image_or_a_pair_and_the_first_kind_counts(tmp_path):
    image, pair = content_hash(b"image"), content_hash(b"pair")
    files = listed(tmp_path, f"image_hash:{image.hex().upper()}", "host:a.org")
    assert kinds(files, "", image_hash=image) == ["image_hash"]
    assert kinds(files, "https://a.org/", image_hash=image) == ["host"]
    assert kinds(files, "", sample_id=image) == [""]
    files = listed(tmp_path, f"sample_id:{pair.hex()}")
    assert kinds(files, "", sample_id=pair) == ["sample_id"]
    assert kinds(files, "", image_hash=pair) == [""]


def test_blank_lines_comments_and_an_empty_list_name_nothing(tmp_path):
    assert kinds(listed(tmp_path, "", "# host:a.org", "  "), "https://a.org") == [""]
    files = listed(tmp_path, "\ufeff# exported", " host:a.org \r")
    assert kinds(files, "https://a.org/") == ["host"]
    assert kinds(files) == []


@pytest.mark.parametrize(
    "line",
    [
        "example.org",
        "host:",
        "host:https://a.org",
        "host:*.a.org",
        "sha256:" + "0" * 64,
        "image_hash:12",
        "sample_id:" + "g" * 32,
        "https://a.org/a b.jpg",
        "https://",
        "https:///a.jpg",
        "x" * 1_000_000,
    ],
)
def test_a_line_that_is_no_entry_is_named_with_its_number(tmp_path, line):
    files = listed(tmp_path, "host:a.org", "", line)
    with pytest.raises(ValueError, match=r"list\.txt:3: '.*': expected a URL") as error:
        drop_lists.build(files, str(tmp_path / "run"))
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_or_not_utf8_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"drop_list=.*: expected a glob"):
        drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))
    (tmp_path / "list.txt").write_bytes(b"host:a.org\nhost:\xff.org\n")
    files = drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"list\.txt:2: "):
        drop_lists.build(files, str(tmp_path / "run"))


def with_list(run: RunFolder, files) -> RunFolder:
    return dataclasses.replace(run, drop_list=files)


def test_listed_pairs_are_dropped_after_opt_outs_and_before_all_else(tmp_path):
    named = Row("x", image="cat")
    pair_id = sample_id(named, "cat").hex()
    files = listed(tmp_path, "host:a.org", f"sample_id:{pair_id}")
    url = "https://img.a.org/1.jpg"
    rows = [named, Row("x"), Row(url=url), Row(url=url, robots="noai")]
    config = SelectionConfig(drop_rules=(rules.FewWords(2),))
    shards = {"web/1": rows, "city/1": rows}
    made = make_run(str(tmp_path / "run"), config, shards, keep_all=["city"])
    run = with_list(made, files)
    assert outcomes(run) == {
        "web/1": ["drop_list", "few_words", "drop_list", "opt_out"],
        "city/1": ["drop_list", "kept", "drop_list", "opt_out"],
    }
    details = [decision.detail for decision in read_decisions(run)["web/1"]]
    assert details == ["sample_id", "", "host", "noai"]


def test_the_contents_of_a_list_name_the_decisions_and_its_file_names_do_not(tmp_path):
    run = make_run(str(tmp_path / "run"), SelectionConfig(), {"web/1": [Row()]})
    one = with_list(run, listed(tmp_path, "host:a.org")).decisions_fingerprint
    other = with_list(run, listed(tmp_path, "host:b.org")).decisions_fingerprint
    assert len({one, other, run.decisions_fingerprint}) == 3
    (tmp_path / "list.txt").rename(tmp_path / "renamed.txt")
    (tmp_path / "renamed.txt").write_text("host:a.org")
    again = with_list(
        run, drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))
    )
    assert again.decisions_fingerprint == one


def test_the_table_of_a_list_is_made_once_and_holds_its_entries(tmp_path):
    files = listed(tmp_path, "host:a.org", "https://b.org/1", "host:a.org")
    path = drop_lists.build(files, str(tmp_path / "run"))
    assert os.path.getsize(path) == 2 * 16
    opened = DropList.open(path)
    columns = ("url", "image_hash", "sample_id")
    rows = [("https://a.org", b"i" * 16, b"s" * 16), ("x", b"i" * 16, b"s" * 16)]
    table = pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))
    assert opened.kinds_of(table).tolist() == ["host", ""]
    before = os.stat(path).st_mtime_ns
    (tmp_path / "list.txt").write_text("another.org")  # is not read again
    assert drop_lists.build(files, str(tmp_path / "run")) == path
    assert os.stat(path).st_mtime_ns == before
    (tmp_path / "list.txt").write_text("")
    none = drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))
    empty = DropList.open(drop_lists.build(none, str(tmp_path / "run")))
    assert empty.kinds_of(table).tolist() == ["", ""]


@pytest.mark.parametrize("n_bytes", [0, 16, 48])
def test_a_table_of_another_size_is_made_again(tmp_path, n_bytes):
    files = listed(tmp_path, "host:a.org", "host:b.org")
    path = pathlib.Path(drop_lists.build(files, str(tmp_path / "run")))
    whole = path.read_bytes()
    os.truncate(path, n_bytes)
    assert drop_lists.build(files, str(tmp_path / "run")) == str(path)
    assert path.read_bytes() == whole


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    files = listed(tmp_path, "host:a.org")
    drop_lists.build(files, str(tmp_path / "run"))
    read = []
    digest_of = drop_lists._contents_digest
    monkeypatch.setattr(
        drop_lists, "_contents_digest", lambda uri: read.append(uri) or digest_of(uri)
    )
    pattern, root = str(tmp_path / "*.txt"), str(tmp_path / "run")
    assert drop_lists.list_files(pattern, root) == files
    assert not read
    changed = listed(tmp_path, "host:a.org", "host:b.org")
    assert len(read) == 1
    assert changed[0].digest != files[0].digest


# Large tables


def random_digests(n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    return np.frombuffer(rng.bytes(16 * n), drop_tables.DIGEST_DTYPE)


def test_a_table_is_sorted_in_blocks_of_any_size(tmp_path):
    digests = random_digests(5000)
    blocks = [digests[:7], digests[:0], digests[3:4000], digests[4000:]]
    path = str(tmp_path / "sorted.bin")
    drop_tables.write_sorted(blocks, path)
    np.testing.assert_array_equal(drop_tables.open_whole(path), np.unique(digests))
    drop_tables.write_sorted([digests[:0]], path)
    assert not len(drop_tables.open_whole(path))


@pytest.mark.parametrize("is_even", [True, False])
def test_a_part_of_a_table_has_all_entries_of_that_part(tmp_path, is_even):
    digests = np.unique(random_digests(4000))
    if not is_even:  # no hashes: most are in one part
        words = digests.view(np.uint8).reshape(-1, 16).copy()
        words[:3500, 0] = 0
        digests = np.unique(words.view(drop_tables.DIGEST_DTYPE).ravel())
    path = str(tmp_path / "table.bin")
    drop_tables.write_sorted([digests], path)
    parts = drop_tables.parts_of(digests, 9)
    assert (np.diff(parts) >= 0).all()
    assert {0, 8} <= set(parts.tolist())
    for part in range(9):
        found = drop_tables.read_part(path, part, 9)
        assert drop_tables.is_in(digests[parts == part], found).all()
        if is_even:
            assert len(found) < 4000 / 9 + 2 * (4 * 63 + 8) + 1


def test_parts_of_a_table_decide_like_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(drop_tables, "ENTRIES_PER_PART", 4)
    monkeypatch.setattr(drop_lists, "_PAIRS_AT_A_TIME", 3)
    monkeypatch.setattr(drop_lists, "_ENTRIES_AT_A_TIME", 5)
    hosts = ["a.org", "b.a.org", "c.net", "d.com"]
    rows = {
        f"{source}/1": [
            Row(
                image=f"image {i % 9}",
                url=f"https://{hosts[i % 4]}/{i}" if i % 3 else "",
                robots="noai" if i % 10 == 0 else "",
                error="broken" if i % 11 == 0 else "",
            )
            for i in range(first, first + 20)
        ]
        for source, first in (("web", 0), ("more", 15), ("city", 30))
    }
    files = listed(
        tmp_path,
        *("host:b.a.org", "host:none.org", "https://c.net/14", "https://a.org/20"),
        f"image_hash:{content_hash(b'image 5').hex()}",
        f"sample_id:{sample_id(Row(), 'image 7').hex()}",
        *(f"https://nowhere.org/{i}" for i in range(30)),
    )
    run = with_list(
        make_run(str(tmp_path / "run"), SelectionConfig(), rows, keep_all=["city"]),
        files,
    )
    table = drop_lists.build(files, run.root)
    opened = [open_lot(lot, run) for lot in run.lots]
    found = []
    for max_mapped in (10**6, 0):
        label = f"{max_mapped} mapped"
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            decided = (
                pipeline
                | beam.Create(opened)
                | label >> rights.LookUp(run, table, max_mapped)
            )
            _ = decided | beam.Map(write_outcomes, str(tmp_path / label))
        paths = sorted((tmp_path / label).iterdir())
        found.append({path.name: path.read_text() for path in paths})
    assert found[0] == found[1]
    assert len(found[0]) == 3
    for kind in drop_lists.KINDS:
        assert kind in "".join(found[0].values())


def write_outcomes(decisions: LotDecisions, folder: str) -> None:
    lines = zip(decisions.outcome.tolist(), decisions.detail, strict=True)
    path = pathlib.Path(folder, decisions.lot.name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(str, lines)))


def test_lines_may_end_in_any_way(tmp_path):
    lines = b"host:a.org\r\nhost:b.org\rhost:c.org\n\nbad"
    (tmp_path / "list.txt").write_bytes(lines)
    files = drop_lists.list_files(str(tmp_path / "*.txt"), str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"list\.txt:5: 'bad'"):
        drop_lists.build(files, str(tmp_path / "run"))


def test_a_look_up_costs_little_more_in_a_long_list(tmp_path):
    n_entries = 20_000
    files = listed(tmp_path, *(f"https://a.org/{i}.jpg" for i in range(n_entries)))
    found = open_list(files)
    urls = [f"https://a.org/{i}.jpg" for i in range(n_entries - 500, n_entries + 500)]
    hashes = [b"h" * 16] * 1000
    table = pa.table({"url": urls, "image_hash": hashes, "sample_id": hashes})
    start_s = time.perf_counter()
    assert (found.kinds_of(table) == "url").sum() == 500
    assert time.perf_counter() - start_s < 2  # a scan of the list takes minutes
