"""Tests of columns of Parquet: what is there is used, whatever its type, or refused."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.curation import ImageTextSource
from pipeline.sources.raw_pairs import RawPair
from pipeline.sources.shards import Shard, check_columns
from tests.pipeline.sources.test_shards import (
    errors_of,
    lot_of,
    pairs_of,
    write_parquet,
)

TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_binary()),
]
LIST_TYPES = [
    pa.list_(pa.string()),
    pa.large_list(pa.binary()),
    pa.list_(pa.string(), 2),
    pa.list_view(pa.string()),
    pa.list_(pa.binary_view()),
]


def write(path, **columns) -> str:
    """Two rows with images, and a column of texts unless there is one."""
    columns = {"jpg": [b"0", b"1"]} | columns
    return write_parquet(
        path, columns if len(columns) > 1 else columns | {"text": "ab"}
    )


@pytest.mark.parametrize("column_type", TEXT_TYPES)
def test_texts_keys_addresses_and_directives_are_read_whatever_stores_them(
    tmp_path, column_type
):
    values = pa.array(["zero", None]).cast(column_type)
    names = ("caption", "key", "url", "x_robots_tag")
    path = write(tmp_path / "a.parquet", **dict.fromkeys(names, values))
    assert pairs_of(path) == [
        RawPair("zero", "zero", b"0", b"zero", 0, "", "zero"),
        RawPair("1", "", b"1", b"", 1, "no alt text"),
    ]


@pytest.mark.parametrize("column_type", LIST_TYPES)
def test_of_lists_the_first_text_counts_and_all_directives(tmp_path, column_type):
    values = pa.array([["one", "two"], ["", None]], column_type)
    names = ("caption", "url", "x_robots_tag")
    path = write(tmp_path / "a.parquet", **dict.fromkeys(names, values))
    assert pairs_of(path) == [
        RawPair("0", "one", b"0", b"one", 0, "", "one, two"),
        RawPair("1", "", b"1", b"", 1, "no alt text"),
    ]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([["", " \n", "a"], []], [b"a", b""]),
        ([[None, "a"], [None]], [b"a", b""]),
        ([{"raw": "a", "tokens": ["a"]}, None], [b"a", b""]),
        ([[{"caption": "a"}, {"caption": "b"}], []], [b"a", b""]),
        ([float("nan"), None], [b"", b""]),
        ([None, None], [b"", b""]),
    ],
)
def test_a_row_without_a_text_is_unreadable_alone(tmp_path, values, texts):
    pairs = pairs_of(write(tmp_path / "a.parquet", caption=values))
    assert [pair.alt_text for pair in pairs] == texts
    errors = ["" if text else "no alt text" for text in texts]
    assert [pair.error for pair in pairs] == errors


@pytest.mark.parametrize(
    "name",
    ["captions", "Caption", "TEXT", "txt", "alt-text", "sentences", "caption_0", "Alt"],
)
def test_usual_names_of_texts(tmp_path, name):
    (pair, _) = pairs_of(write(tmp_path / "a.parquet", **{name: ["a", "b"]}))
    assert (pair.alt_text, pair.error) == (b"a", "")


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ([7.0, None], ["7", "1"]),
        ([decimal.Decimal("7.50"), None], ["7.50", "1"]),
        ([datetime.date(2026, 1, 2), None], ["2026-01-02", "1"]),
        ([b"\xff", ""], ["\\xff", "1"]),
    ],
)
def test_keys_may_be_of_any_single_value(tmp_path, values, keys):
    if isinstance(values[0], bytes):
        values[1] = b""
    path = write(tmp_path / "a.parquet", text=["a", "b"], id=values)
    assert [pair.key for pair in pairs_of(path)] == keys


@pytest.mark.parametrize(
    "images",
    [
        pa.array([b"0", b"1"], pa.binary(1)),
        pa.array([b"0", b"1"]).dictionary_encode(),
        pa.array([b"0", b"1"], pa.large_binary()),
        pa.array([{"bytes": b"0", "path": None}, {"bytes": b"1", "path": "x"}]),
    ],
)
def test_images_are_read_whatever_stores_them(tmp_path, images):
    path = write(tmp_path / "a.parquet", jpg=images, text=["a", "b"])
    assert [pair.image for pair in pairs_of(path)] == [b"0", b"1"]


def test_a_converted_webdataset_is_read(tmp_path):
    record = {"url": "u", "x_robots_tag": "noai", "original_width": 9}
    path = write(
        tmp_path / "a.parquet",
        txt=["a", "b"],
        json=[record | {"original_height": 8}, None],
        __key__=["k0", "k1"],
        __url__=["x.tar", "x.tar"],
    )
    assert pairs_of(path) == [
        RawPair("k0", "u", b"0", b"a", 0, "", "noai", 9, 8),
        RawPair("k1", "", b"1", b"b", 1),
    ]


def test_text_that_is_no_utf8_in_a_list_costs_its_own_row_only(tmp_path):
    bad = pa.array([b"good", b"\xff"]).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 2], bad)
    path = write(tmp_path / "a.parquet", caption=lists, x_robots_tag=lists)
    assert [pair.robots for pair in pairs_of(path)] == ["good", "\\xff"]
    not_text = "alt text is not UTF-8: invalid start byte at byte 0"
    assert errors_of(path) == [("0", ""), ("1", not_text)]


def test_rows_of_failed_downloads_say_why(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        jpg=[None, None],
        text=["a", "b"],
        status=pa.array(["failed_to_download", "success"]).dictionary_encode(),
        error_message=["HTTP Error 404: Not Found", None],
    )
    failed = "no image: failed_to_download: HTTP Error 404: Not Found"
    assert errors_of(path) == [("0", failed), ("1", "no image")]


@pytest.mark.parametrize("size_type", [pa.int32(), pa.float64(), pa.uint16()])
def test_sizes_before_resizing_come_from_columns(tmp_path, size_type):
    columns = {
        name: pa.array([900, None], size_type)
        for name in ("original_width", "original_height")
    }
    first, second = pairs_of(write(tmp_path / "a.parquet", text=["a", "b"], **columns))
    assert (first.original_width, first.original_height) == (900, 900)
    assert (second.original_width, second.original_height) == (0, 0)


NUMBERS = pa.array([1, 2])
REFUSED = [
    ({"image": ["a.jpg", "b"]}, "column 'image' is string: .*; image_column names"),
    ({"Image": [{"path": "a"}] * 2}, r"column 'Image' is struct<.*image_column names"),
    ({"jpg": [[1, 2], [3]]}, "column 'jpg' is list<.*: expected encoded images"),
    ({"caption": NUMBERS}, "column 'caption' is int64: .*; alt_text_column names"),
    ({"captions": [[1], [2]]}, "column 'captions' is list<.*: expected texts or lists"),
    ({"text": [{"x": 1}] * 2}, "column 'text' is struct<.*: expected texts or lists"),
    ({"caption": pa.array([0.5, None])}, "column 'caption' is double: expected texts"),
    ({"url": NUMBERS}, "column 'url' is int64: expected texts"),
    ({"URL": [{"x": "u"}] * 2}, "column 'URL' is struct<.*: expected texts"),
    ({"x_robots_tag": NUMBERS}, "column 'x_robots_tag' is int64: expected texts or"),
    ({"X-Robots-Tag": [True, None]}, "column 'X-Robots-Tag' is bool: expected texts"),
    ({"robots": pa.array([0.5, None])}, "column 'robots' is double: expected texts"),
    ({"robots": [[0.5], []]}, "column 'robots' is list<.*: expected texts or lists"),
    ({"key": [["a"], ["b"]]}, "column 'key' is list<.*texts or numbers; key_column"),
]


def in_the_second_shard(tmp_path, columns) -> list[Shard]:
    """Shards of which only the last is as the test wants it."""
    images, texts = [b"0", b"1"], ["a", "b"]
    write_parquet(tmp_path / "0.parquet", {"image": images, "caption": texts})
    if not {"jpg", "image", "Image"} & columns.keys():
        columns = columns | {"jpg": images}
    if not {"caption", "captions", "text"} & columns.keys():
        columns = columns | {"text": texts}
    write_parquet(tmp_path / "1.parquet", columns)
    source = ImageTextSource("web", str(tmp_path / "*"))
    return [Shard(source, str(tmp_path / name)) for name in ("0.parquet", "1.parquet")]


@pytest.mark.parametrize(("columns", "message"), REFUSED)
def test_a_usual_name_of_a_type_that_cannot_be_used_is_refused(
    tmp_path, columns, message
):
    lots = in_the_second_shard(tmp_path, columns)
    with pytest.raises(ValueError, match=rf"^web=.*1\.parquet: {message}") as error:
        check_columns(lots)
    assert len(str(error.value)) < 300 + len(lots[1].uri)
    ((key, row_error),) = errors_of(lots[1].uri)
    assert key == ""
    assert str(error.value).endswith(row_error)


def test_two_columns_of_one_name_are_refused(tmp_path):
    names = ["jpg", "text", "x_robots_tag", "x_robots_tag"]
    columns = [pa.array([b"0"]), *[pa.array(["a"])] * 3]
    pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "a.parquet")
    expected = "column 'x_robots_tag' is there twice: expected it once"
    with pytest.raises(ValueError, match=expected):
        check_columns([lot_of(tmp_path / "a.parquet")])
    assert errors_of(tmp_path / "a.parquet") == [("", expected)]


def test_a_source_that_needs_texts_and_has_none_is_refused(tmp_path):
    path = write(
        tmp_path / "a.parquet", label=[1, 2], **{f"x{i}": "ab" for i in range(99)}
    )
    with pytest.raises(
        ValueError, match=r"no column for alt_text_column: .*label: int"
    ):
        check_columns([lot_of(path)])
    check_columns([lot_of(path, needs_alt_text=False)])
    check_columns([lot_of(path, alt_text_column="x7")])


def test_a_damaged_shard_is_left_to_be_counted(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" * 9)
    check_columns([lot_of(tmp_path / "a.parquet"), lot_of(tmp_path / "gone.parquet")])


TEXT_MAP = pa.map_(pa.string(), pa.string())
FLAG_MAP = pa.map_(pa.string(), pa.bool_())


@pytest.mark.parametrize(
    ("name", "values", "directives"),
    [
        ("x_robots_tag", pa.array([{"noai": True}, {"noai": False}]), ["noai", ""]),
        (
            "x_robots_tag",
            pa.array([[("noai", True)], [("noai", False)]], FLAG_MAP),
            ["noai", ""],
        ),
        ("http_x_robots_tag", pa.array(["noai", None]), ["noai", ""]),
        ("noai", pa.array(["true", "false"]), ["noai: true", ""]),
        ("crawl", pa.array([{"h": {"x-robots-tag": "noai"}}, None]), ["noai", ""]),
        ("crawl", pa.array([[("X-Robots-Tag", "noai")], []], TEXT_MAP), ["noai", ""]),
        ("headers", pa.array([[{"key": "X-Robots-Tag", "v": "noai"}], []]), None),
        ("headers", pa.array([b"Server: x\r\nX-Robots-Tag: noai\r\n", b"x"]), None),
    ],
)
def test_directives_lie_in_columns_of_many_types(tmp_path, name, values, directives):
    pairs = pairs_of(write(tmp_path / "a.parquet", text=["a", "b"], **{name: values}))
    assert [pair.robots for pair in pairs] == (directives or ["noai", ""])


def test_lists_without_any_address_are_none(tmp_path):
    empty = pa.array([[], None], pa.list_(pa.null()))
    pairs = pairs_of(write(tmp_path / "a.parquet", text=["a", "b"], url=empty))
    assert [(pair.url, pair.error) for pair in pairs] == [("", "")] * 2
