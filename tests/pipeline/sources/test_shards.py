"""Tests of shards to pairs and back: every pair has its row, whatever is wrong."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.curation import ImageTextSource, Limits
from pipeline.records import Pair, content_hash, sample_id
from pipeline.sources.shards import (
    RawPair,
    Shard,
    ShardError,
    list_shards,
    read_pairs,
    read_shard_images,
)
from pipeline.storage import files

LIMITS = Limits(max_image_bytes=20, max_alt_text_bytes=10)


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def lot_of(path, **fields) -> Shard:
    return Shard(ImageTextSource("web", str(path), **fields), str(path))


def pairs_of(path, **fields) -> list[RawPair]:
    return list(read_pairs(lot_of(path, **fields), LIMITS))


def errors_of(path, **fields) -> list[tuple[str, str]]:
    return [(pair.key, pair.error) for pair in pairs_of(path, **fields)]


def scored(raw: RawPair) -> Pair:
    return Pair(
        sample_id=sample_id(raw.image, raw.alt_text),
        key=raw.key,
        url=raw.url,
        alt_text=raw.text,
        image_hash=content_hash(raw.image),
        image_format="jpeg",
        width=1,
        height=1,
        n_bytes=len(raw.image),
        offset=raw.offset,
        error="",
    )


def test_a_pair_has_the_key_url_image_text_and_place_of_its_members(tmp_path):
    metadata = json.dumps({"key": "000", "url": "https://example.com/a.jpg"}).encode()
    members = [
        ("000.jpg", b"image"),
        ("000.json", metadata),
        ("000.txt", "größer".encode()),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    (pair,) = pairs_of(path)
    assert (pair.key, pair.url) == ("000", "https://example.com/a.jpg")
    assert (pair.image, pair.text, pair.error) == (b"image", "größer", "")
    assert path.read_bytes()[pair.offset :].startswith(b"image")


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_image_extensions(tmp_path, extension):
    members = [(f"a.{extension}", b"image"), ("a.txt", b"text")]
    assert errors_of(write_tar(tmp_path / "a.tar", members)) == [("a", "")]


def test_the_key_ends_at_the_first_dot_and_other_members_are_ignored(tmp_path):
    members = [
        ("README", b"no key"),
        ("web/a.jpg", b"image"),
        ("web/a.seg.png", b"mask"),
        ("web/.a.jpg", b"hidden"),
        ("web/a.txt", b"text"),
        ("b/a.jpg", b"other"),
        ("b/a.txt", b"text"),
    ]
    pairs = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert [(pair.key, pair.image) for pair in pairs] == [
        ("web/a", b"image"),
        ("b/a", b"other"),
    ]


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([("a.jpg", b"image")], "no alt text"),
        ([("a.jpg", b"image"), ("a.txt", b"")], "no alt text"),
        ([("a.jpg", b"image"), ("a.txt", b" \n\xc2\xa0")], "no alt text"),
        (
            [("a.jpg", b"image"), ("a.txt", b"caf\xe9")],
            "alt text is not UTF-8: unexpected end of data at byte 3",
        ),
        (
            [("a.jpg", b"image"), ("a.txt", b"x" * 11)],
            "alt text of 11 bytes: expected at most max_alt_text_bytes=10",
        ),
        ([("a.txt", b"text")], "no image"),
        ([("a.json", b"{}")], "no image"),
        ([("a.bin", b"x"), ("a.txt", b"t")], "no image: its key holds a.bin, a.txt"),
        ([("a.jpg", b""), ("a.txt", b"text")], "empty image"),
        (
            [("a.jpg", b"x" * 21), ("a.txt", b"text")],
            "image of 21 bytes: expected at most max_image_bytes=20",
        ),
    ],
)
def test_a_bad_pair_is_a_row_with_the_error_and_the_next_one_is_read(
    tmp_path, members, error
):
    good = [("b.jpg", b"image"), ("b.txt", b"text")]
    path = write_tar(tmp_path / "a.tar", members + good)
    assert errors_of(path) == [("a", error), ("b", "")]


def test_text_and_image_of_a_bad_pair_are_kept_if_they_can_be_read(tmp_path):
    members = [("a.jpg", b"image"), ("a.txt", b"\xff"), ("b.txt", b"text")]
    bad_text, no_image = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert (bad_text.image, bad_text.text) == (b"image", "")
    assert (no_image.image, no_image.text) == (b"", "text")


def test_alt_text_is_optional_where_the_source_says_so(tmp_path):
    members = [("a.jpg", b"image"), ("b.jpg", b"image"), ("b.txt", b"\xff")]
    path = write_tar(tmp_path / "a.tar", members)
    not_text = "alt text is not UTF-8: invalid start byte at byte 0"
    expected = [("a", ""), ("b", not_text)]
    assert errors_of(path, needs_alt_text=False) == expected


def test_a_key_that_comes_twice_is_two_pairs(tmp_path):
    members = [("a.jpg", b"1"), ("a.txt", b"one"), ("a.jpg", b"2"), ("a.txt", b"two")]
    for order in (
        members,
        [*members[:2], ("b.jpg", b"3"), ("b.txt", b"x"), *members[2:]],
    ):
        pairs = pairs_of(write_tar(tmp_path / "a.tar", order))
        found = [(pair.image, pair.text) for pair in pairs if pair.key == "a"]
        assert found == [(b"1", "one"), (b"2", "two")]


def test_a_name_that_leaves_the_folder_is_only_a_key(tmp_path):
    members = [("../../out.jpg", b"image"), ("../../out.txt", b"text")]
    assert errors_of(write_tar(tmp_path / "a.tar", members)) == [("../../out", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(
    "metadata",
    [b"", b"{", b"[]", b'{"url": 3}', b"[" * 100_000, b"\xff", b'{"url": null}'],
)
def test_metadata_that_makes_no_sense_is_no_url(tmp_path, metadata):
    members = [("a.jpg", b"image"), ("a.txt", b"text"), ("a.json", metadata)]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert (pair.url, pair.error) == ("", "")


def test_half_a_surrogate_pair_in_a_url_becomes_writable(tmp_path):
    members = [("a.jpg", b"i"), ("a.txt", b"t"), ("a.json", b'{"url": "x\\ud800y"}')]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert pair.url == "x?y"


@pytest.mark.parametrize(
    ("record", "robots"),
    [
        ({"x_robots_tag": "noai, noindex"}, "noai, noindex"),
        ({"X-Robots-Tag": "NoAI"}, "NoAI"),
        ({"x_robots_tag": None, "robots": ["noai", None, "all"]}, "noai, all"),
        ({"x_robots_tag": "all", "robots": "noai"}, "all, noai"),
        ({"x_robots_tag": 3}, "not understood: 3"),
        ({"x_robots_tag": {"noai": True}}, "noai"),
        ({"x_robots_tag": "x\ud800"}, "x?"),
        (
            {"x_robots_tag": "x" * 4097},
            "not understood: 4,097 characters of directives",
        ),
        ({"status": "success", "exif": "{}"}, ""),
    ],
)
def test_directives_for_robots_come_from_the_metadata(tmp_path, record, robots):
    metadata = json.dumps(record).encode()
    members = [("a.jpg", b"image"), ("a.txt", b"text"), ("a.json", metadata)]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert (pair.robots, pair.error) == (robots, "")


def test_an_address_of_a_megabyte_keeps_its_host(tmp_path):
    url = "https://a.org/" + "x" * 1_000_000
    metadata = json.dumps({"url": url}).encode()
    members = [("a.jpg", b"i"), ("a.txt", b"t"), ("a.json", metadata)]
    (pair,) = pairs_of(write_tar(tmp_path / "a.tar", members))
    assert (pair.url, pair.error) == (url[: 1 << 16], "")


@pytest.mark.parametrize(
    ("name", "values", "robots"),
    [
        ("x_robots_tag", ["noai", None, " all\n"], ["noai", "", "all"]),
        ("robots", [["noai", None, "all"], None, []], ["noai, all", "", ""]),
        ("robots", [[b"noai", b"\xff"], None, []], ["noai, \\xff", "", ""]),
        ("X-Robots-Tag", [b"noai", b"\xff", b""], ["noai", "\\xff", ""]),
        ("x-robots-tag", [[["noai"], ["all"]], None, []], ["noai, all", "", ""]),
        ("Robots", [{"noai": True, "all": False}, None, {}], ["noai", "", ""]),
        ("headers", [{"X-Robots-Tag": "noai"}, None, {}], ["noai", "", ""]),
        ("json", ['{"x_robots_tag": ["noai"]}', None, "x"], ["noai", "", ""]),
        ("headers", ["HTTP/2 200\r\nX-Robots-Tag: noai", "", "x"], ["noai", "", ""]),
        ("noai", [True, False, None], ["noai", "", ""]),
        ("x_robots_tag", [None, None, None], ["", "", ""]),
        ("x_robots_tag", [float("nan")] * 3, ["", "", ""]),
        ("other", ["noai", "noai", "noai"], ["", "", ""]),
    ],
)
def test_directives_for_robots_come_from_a_column(tmp_path, name, values, robots):
    columns = {"jpg": [b"1", b"2", b"3"], "text": ["a", "b", "c"], name: values}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pairs = pairs_of(tmp_path / "a.parquet")
    assert [(pair.robots, pair.error) for pair in pairs] == [(r, "") for r in robots]


def three_pairs() -> list[tuple[str, bytes]]:
    return [
        member
        for key in "abc"
        for member in ((f"{key}.jpg", key.encode() * 9), (f"{key}.txt", b"text"))
    ]


def test_a_tar_cut_anywhere_keeps_the_pairs_before_and_ends_in_one_error(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", three_pairs()).read_bytes()
    end = whole.rindex(b"text") + 512
    path = tmp_path / "cut.tar"
    for length in range(0, end, 97):
        path.write_bytes(whole[:length])
        *before, last = pairs_of(path)
        assert [(pair.key, pair.error) for pair in before] == [
            (key, "") for key in "abc"[: len(before)]
        ]
        assert len(before) == len([o for o in _ends(whole) if o <= length])
        assert (last.key, last.error[:19]) == ("", "tar cut off at byte")


def _ends(tar: bytes) -> list[int]:
    """Where the text of each pair ends."""
    starts = [i for i in range(0, len(tar), 512) if tar[i : i + 4] == b"text"]
    return [start + 4 for start in starts]


def test_garbage_in_a_tar_keeps_the_pairs_before_it(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", three_pairs()).read_bytes())
    data[data.index(b"b.jpg") :] = b"\x07" * 3000
    (tmp_path / "a.tar").write_bytes(data)
    expected = "tar damaged at byte 2048: wrong checksum of a header"
    found = errors_of(tmp_path / "a.tar")
    assert found[0] == ("a", "")
    assert [key for key, _ in found] == ["a", ""]
    assert found[1][1].startswith(expected[:26])


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b"garbage", bytes(range(256)) * 8])
def test_a_shard_of_garbage_is_one_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    ((key, error),) = errors_of(tmp_path / name)
    assert key == ""
    assert error.startswith(("tar cut off", "tar damaged", "Parquet file damaged: "))


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_shard_that_is_missing_or_a_folder_is_one_error(tmp_path, name):
    cause = "shard cannot be opened: "
    assert errors_of(tmp_path / name) == [("", cause + "No such file or directory")]
    (tmp_path / name).mkdir()
    assert errors_of(tmp_path / name) == [("", cause + "Is a directory")]


def test_pairs_come_before_the_rest_of_the_shard_is_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", three_pairs() * 50)
    pairs = read_pairs(lot_of(path), LIMITS)
    assert next(pairs).key == "a"
    path.write_bytes(b"")
    *_, last = pairs
    assert last.error.startswith("tar cut off")


def write_parquet(path, columns, rows_per_group=2):
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def test_img2dataset_parquet_is_read(tmp_path):
    columns = {
        "url": ["u0", None, "u2"],
        "caption": ["zero", "one", None],
        "key": ["000", "001", "002"],
        "jpg": [b"0", None, b"2"],
        "label_name": ["rose", "rose", "rose"],
    }
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert pairs_of(path) == [
        RawPair("000", "u0", b"0", b"zero", 0),
        RawPair("001", "", b"", b"one", 1, "no image"),
        RawPair("002", "u2", b"2", b"", 2, "no alt text"),
    ]


IN_FILE = "is in the file, not its bytes"


def test_hugging_face_parquet_is_read(tmp_path):
    images = [{"bytes": b"0", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    columns = {"image": images, "text": ["zero", "one", "two"], "id": [7, 8, None]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert pairs_of(path) == [
        RawPair("7", "", b"0", b"zero", 0),
        RawPair("8", "", b"", b"one", 1, f"no image: only its path 'b.jpg' {IN_FILE}"),
        RawPair("2", "", b"", b"two", 2, "no image"),
    ]


def test_named_columns_come_before_the_usual_ones(tmp_path):
    columns = {"jpg": [b"0"], "photo": [b"1"], "caption": ["a"], "alt": ["b"], "n": [3]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    names = {"image_column": "photo", "alt_text_column": "alt", "key_column": "n"}
    assert pairs_of(path, **names) == [RawPair("3", "", b"1", b"b", 0)]


def test_a_usual_column_of_another_type_is_passed_over_where_another_is_named(tmp_path):
    columns = {"image": ["a.jpg"], "png": [b"0"], "caption": [5], "text": ["t"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    named = {"image_column": "png", "alt_text_column": "text"}
    assert pairs_of(path, **named) == [RawPair("0", "", b"0", b"t", 0)]


def test_text_that_is_no_utf8_costs_its_own_row_only(tmp_path):
    texts = pa.array([b"good", b"\xff"]).view(pa.string())
    path = write_parquet(tmp_path / "a.parquet", {"jpg": [b"0", b"1"], "text": texts})
    not_text = "alt text is not UTF-8: invalid start byte at byte 0"
    assert errors_of(path) == [("0", ""), ("1", not_text)]


def test_limits_hold_for_parquet(tmp_path):
    columns = {"jpg": [b"x" * 21, b"x"], "text": ["t", "t" * 11]}
    assert errors_of(write_parquet(tmp_path / "a.parquet", columns)) == [
        ("0", "image of 21 bytes: expected at most max_image_bytes=20"),
        ("1", "alt text of 11 bytes: expected at most max_alt_text_bytes=10"),
    ]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {},
            "column 'image' is string: expected encoded images (binary, or a struct "
            "with bytes); image_column names another",
        ),
        (
            {"image_column": "jpeg"},
            "image_column='jpeg': expected one of image: string, text: string",
        ),
        (
            {"image_column": "text"},
            "column 'text' is string: expected encoded images (binary, or a struct "
            "with bytes); image_column names another",
        ),
    ],
)
def test_a_column_that_is_not_there_is_the_error_of_the_shard(tmp_path, fields, error):
    columns = {"image": ["a.jpg", "b.jpg"], "text": ["a", "b"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert errors_of(path, **fields) == [("", error)]


def test_a_damaged_row_group_keeps_the_rows_before_it(tmp_path):
    images = [bytes([i]) * 18 for i in range(6)]
    columns = {"jpg": images, "text": list("abcdef")}
    path = write_parquet(tmp_path / "a.parquet", columns)
    data = bytearray(path.read_bytes())
    second_group = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data[second_group : second_group + 30] = b"\xff" * 30
    path.write_bytes(data)
    found = errors_of(path)
    assert found[:2] == [("0", ""), ("1", "")]
    assert len(found) == 3
    assert found[2][1].startswith("Parquet file damaged: ")


def test_images_of_chosen_pairs_come_back_from_a_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", three_pairs())
    first, _, last = map(scored, pairs_of(path))
    images = read_shard_images(lot_of(path), [first, last])
    assert list(images) == [b"a" * 9, b"c" * 9]


@pytest.mark.parametrize("chosen", [[], [0], [1, 2], [4], [0, 99, 100], range(101)])
def test_images_of_chosen_pairs_come_back_from_parquet(tmp_path, chosen):
    columns = {"jpg": [str(i).encode() for i in range(101)], "text": ["t"] * 101}
    path = write_parquet(tmp_path / "a.parquet", columns, rows_per_group=40)
    pairs = [scored(raw) for raw in pairs_of(path)]
    images = read_shard_images(lot_of(path), [pairs[i] for i in chosen])
    assert list(images) == [str(i).encode() for i in chosen]


def test_a_shard_that_has_changed_is_an_error_that_names_it(tmp_path):
    path = write_tar(tmp_path / "a.tar", three_pairs())
    pairs = [scored(raw) for raw in pairs_of(path)]
    write_tar(path, [("x.jpg", b"other"), *three_pairs()])
    with pytest.raises(ShardError, match=r"a\.tar has changed since it was scored: "):
        list(read_shard_images(lot_of(path), pairs))


def test_a_parquet_that_has_shrunk_is_an_error_that_names_it(tmp_path):
    columns = {"jpg": [b"0", b"1"], "text": ["t", "t"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    pairs = [scored(raw) for raw in pairs_of(path)]
    write_parquet(path, {name: values[:1] for name, values in columns.items()})
    with pytest.raises(ShardError, match=r"a\.parquet has changed since it was scored"):
        list(read_shard_images(lot_of(path), pairs))


class FailingFile(io.BytesIO):
    """A file on a network that goes away."""

    def read(self, n_bytes: int = -1) -> bytes:
        raise ConnectionError("reset by peer")


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_failure_that_may_pass_is_raised_and_is_no_row(monkeypatch, name):
    for opening in ("open_stream", "open_for_reading"):
        monkeypatch.setattr(files, opening, lambda path: FailingFile(b"x" * 99))
    with pytest.raises(ConnectionError, match="reset by peer"):
        pairs_of(name)


def test_shards_are_sorted_and_have_digests_of_their_own(tmp_path):
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [])
    found = list_shards(ImageTextSource("web", str(tmp_path / "*" / "*.tar")))
    assert [shard.uri for shard in found] == [
        str(tmp_path / "a" / "0.tar"),
        str(tmp_path / "b" / "0.tar"),
    ]
    assert found[0].digest != found[1].digest


def test_a_glob_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^web=.*/\*\.tar: expected a glob that"):
        list_shards(ImageTextSource("web", str(tmp_path / "*.tar")))


def test_a_glob_that_catches_other_files_is_refused(tmp_path):
    (tmp_path / "0_stats.json").write_text("{}")
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match=r"expected \.tar or \.parquet.*0_stats\.json"):
        list_shards(ImageTextSource("web", str(tmp_path / "*")))


def test_an_empty_tar_has_no_pairs(tmp_path):
    assert pairs_of(write_tar(tmp_path / "a.tar", [])) == []


@pytest.mark.parametrize("view", [pa.binary_view(), pa.string_view()])
def test_columns_of_views_are_read(tmp_path, view):
    columns = {"jpg": pa.array([b"0", None], pa.binary_view())}
    texts = pa.array(["zero", "one"]).cast(view)
    path = write_parquet(tmp_path / "a.parquet", columns | {"text": texts})
    assert pairs_of(path) == [
        RawPair("0", "", b"0", b"zero", 0),
        RawPair("1", "", b"", b"one", 1, "no image"),
    ]


def test_a_file_that_repeats_one_large_image_costs_the_memory_of_a_few(tmp_path):
    image = pa.array([bytes(40 << 20)])
    images = pa.DictionaryArray.from_arrays([0] * 32, image)
    path = tmp_path / "a.parquet"
    columns = {"jpg": images, "text": ["t"] * 32}
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    for pair in read_pairs(lot_of(path), Limits()):
        assert len(pair.image) == 40 << 20
        assert pa.total_allocated_bytes() - before < 200 << 20


def test_parts_have_a_name_whatever_the_shard_is_called(tmp_path):
    long, odd = tmp_path / ("犬" * 83 + ".tar"), tmp_path / "\udcff.tar"
    for path in (long, odd):
        write_tar(path, three_pairs())
        lot = lot_of(path)
        files.write(str(tmp_path / "parts" / lot.digest / "0.parquet"), b"")
        assert len(list(read_pairs(lot, LIMITS))) == 3


def rewrite(path: Path, mtime_ns: int) -> None:
    path.write_bytes(b"other".ljust(path.stat().st_size))
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(path.read_bytes()[:600]),
        lambda path: rewrite(path, 1_000),  # of the same size, and older
        lambda path: rewrite(path, path.stat().st_mtime_ns + 1_000),  # by 1 us
        lambda path: write_tar(path.with_suffix(".new"), []).replace(path),
        lambda path: path.touch(),
    ],
    ids=["grown", "cut", "older", "newer", "replaced", "touched"],
)
@pytest.mark.parametrize("name", ["0.tar", "a [1]{*}?.tar", "0.parquet"])
def test_a_shard_that_changed_has_other_parts(tmp_path, name, change):
    path = tmp_path / name
    write_tar(path, three_pairs())
    source = ImageTextSource("web", f"{tmp_path}/*")
    (before,) = list_shards(source)
    assert list_shards(source) == (before,)
    assert not before.has_changed()
    change(path)
    (after,) = list_shards(source)
    (path_before, held_before), (path_after, held_after) = (
        shard.digest.split("-") for shard in (before, after)
    )
    assert path_before == path_after
    assert held_before != held_after
    assert before.has_changed()
    assert not after.has_changed()
    path.unlink()
    assert not before.has_changed()  # nobody can tell
