"""Files of captions made elsewhere: what rows say, and what is wrong with them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.captions import Granularity
from pipeline.sources import imported_captions, imported_rows
from pipeline.sources.imported_captions import ImportedText, UnreadableRow

KEYS = [bytes([i]) * 16 for i in range(3)]
HEX = [key.hex() for key in KEYS]


def granularity(pattern) -> Granularity:
    return Granularity("human", str(pattern), captioner="imported")


def write_lines(path, *rows):
    """Objects as JSON, and bytes as they are; packed if the name says so."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_parquet(path, *, row_group_size=None, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def read(uri):
    return list(imported_captions.read(uri))


def errors_of(uri):
    return [(r.row, r.error) for r in read(uri) if isinstance(r, UnreadableRow)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("column", "values", "keys"),
    [
        ("image_hash", HEX, KEYS),
        ("sample_id", [text.upper() for text in HEX], KEYS),
        ("url", ["http://a/ü", "b", "c"], ["http://a/ü".encode(), b"b", b"c"]),
    ],
)
def test_json_lines_name_images_by_any_key(tmp_path, name, column, values, keys):
    rows = [{column: value, "text": f"t {value}"} for value in values]
    uri = write_lines(tmp_path / name, *rows)
    assert read(uri) == [
        ImportedText(row, key, 0, f"t {value}")
        for row, (key, value) in enumerate(zip(keys, values, strict=True), 1)
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(HEX),
        pa.array(HEX, pa.large_string()),
        pa.array(KEYS, pa.binary(16)),
        pa.array(KEYS, pa.binary()),
        pa.array([text.encode() for text in HEX], pa.large_binary()),
        pa.array(HEX).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["image_hash", "sample_id"])
def test_parquet_has_hashes_as_hex_or_bytes(tmp_path, name, column):
    columns = {name: column, "caption": ["a", "b", "c"], "other": [1, 2, 3]}
    uri = write_parquet(tmp_path / "a.parquet", **columns)
    found = imported_captions.find_columns(uri)
    assert found is not None
    assert (found.key_name, found.text) == (name, "caption")
    assert read(uri) == [
        ImportedText(row, key, 0, text)
        for row, (key, text) in enumerate(zip(KEYS, "abc", strict=True), 1)
    ]


def test_a_list_of_texts_counts_on_from_the_sample_index(tmp_path):
    texts = [["a", "b"], ["c"]]
    columns = {"URL": ["u", "v"], "captions": texts, "sample_index": [0, 3]}
    expected = [
        ImportedText(1, b"u", 0, "a"),
        ImportedText(1, b"u", 1, "b"),
        ImportedText(2, b"v", 3, "c"),
    ]
    assert read(write_parquet(tmp_path / "a.parquet", **columns)) == expected
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    assert read(write_lines(tmp_path / "a.jsonl", *rows)) == expected


def test_bad_json_rows_cost_themselves_only(tmp_path):
    bad = {
        2: (b"{", "not JSON: Expecting property name"),
        3: (
            b'{"url": "u", "text": "\xff"}',
            "not UTF-8: invalid start byte at byte 22",
        ),
        5: ([1], "JSON list: expected an object"),
        6: ({"text": "t"}, "no url"),
        7: ({"url": "", "text": "t"}, "no url"),
        8: ({"url": "u"}, "no text"),
        9: ({"url": "u", "text": " \n"}, "empty text"),
        10: ({"url": "u", "text": 3}, "text is of type int: expected text"),
        11: (b'{"url": "u", "text": "\\ud800"}', "text is not UTF-8: surrogates"),
        12: ({"url": "u", "text": []}, "no text"),
        13: ({"url": "u", "text": "\0image\0"}, "text with a null character"),
        14: ({"url": 3, "text": "t"}, "url is of type int: expected text"),
        15: (
            {"url": "u", "text": "t", "sample_index": -1},
            "sample_index -1: expected",
        ),
        16: (b"[" * 100_000, "not JSON: "),
        18: (
            b'{"url": "u", "text": "a", "text": "b"}',
            "not JSON: the key 'text' comes twice, expected it once",
        ),
        19: (
            {"url": "u", "text": "t", "sample_index": "9" * 5000},
            f"sample_index '{'9' * 99}",
        ),
    }
    lines = {1: {"url": "a", "text": "first"}, 4: b"", 17: {"url": "b", "text": "last"}}
    lines |= {row: line for row, (line, _) in bad.items()}
    uri = write_lines(tmp_path / "a.jsonl", *(lines[row] for row in sorted(lines)))
    good = [text for text in read(uri) if isinstance(text, ImportedText)]
    assert good == [
        ImportedText(1, b"a", 0, "first"),
        ImportedText(17, b"b", 0, "last"),
    ]
    found = dict(errors_of(uri))
    assert found.keys() == bad.keys()
    for row, (_, error) in bad.items():
        assert found[row].startswith(error)
        assert len(found[row]) <= 200


def test_bad_parquet_rows_cost_themselves_only(tmp_path):
    keys = pa.array([KEYS[0], None, b"short", KEYS[1], KEYS[2]], pa.binary())
    texts = pa.array([b"a", b"b", b"c", b"\xff", None]).cast(pa.binary())
    uri = write_parquet(tmp_path / "a.parquet", image_hash=keys, text=texts)
    assert read(uri) == [
        ImportedText(1, KEYS[0], 0, "a"),
        UnreadableRow(2, "no image_hash"),
        UnreadableRow(3, "image_hash 'short': expected 16 bytes or hex"),
        UnreadableRow(4, "text is not UTF-8: invalid start byte"),
        UnreadableRow(5, "no text"),
    ]


def test_bad_texts_of_a_list_cost_none_of_the_others(tmp_path):
    uri = write_lines(tmp_path / "a.jsonl", {"url": "u", "text": ["a", "", None, "d"]})
    assert read(uri) == [
        ImportedText(1, b"u", 0, "a"),
        ImportedText(1, b"u", 3, "d"),
        UnreadableRow(1, "empty text; no text"),
    ]


def test_what_is_whole_of_a_damaged_file_is_read(tmp_path):
    rows = [{"url": f"u{i}", "text": f"{i * 7919:x}" * 9} for i in range(3000)]
    path = tmp_path / "a.jsonl.gz"
    write_lines(path, *rows)
    path.write_bytes(path.read_bytes()[:-5000])
    *texts, last = read(str(path))
    assert [t.text for t in texts] == [row["text"] for row in rows[: len(texts)]]
    assert 0 < len(texts) < 3000
    assert last.row == len(texts) + 1
    assert last.error.startswith("this line and the rest: ")


def test_a_damaged_row_group_costs_none_before_it(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"url": ["a", "b", "c", "d"], "text": ["w", "x", "y", "z"]}
    write_parquet(path, row_group_size=2, **columns)
    group = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = b"\xff" * (
        group.total_compressed_size
    )
    path.write_bytes(data)
    first, second, last = read(str(path))
    assert (first.text, second.text) == ("w", "x")
    assert last.row == 3
    assert last.error.startswith("this row and the rest: Parquet file damaged: ")


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(imported_rows, "_MAX_LINE_BYTES", 40)
    rows = [{"url": "a", "text": "t" * n} for n in (3, 100, 5)]
    uri = write_lines(tmp_path / "a.jsonl", *rows)
    assert read(uri) == [
        ImportedText(1, b"a", 0, "ttt"),
        UnreadableRow(2, "line of over 40 bytes"),
        ImportedText(3, b"a", 0, "ttttt"),
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": ["t"], "x": ["y"]}, "url, found none among text, x"),
        ({"url": ["u"], "sample_id": HEX[:1], "text": ["t"]}, "url and sample_id"),
        (
            {"url": ["u"], "words": ["t"]},
            "text or caption, found none among url, words",
        ),
        ({"url": ["u"], "text": ["t"], "caption": ["t"]}, "found text and caption"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_columns_that_cannot_be_meant_are_named(tmp_path, name, columns, expected):
    if name == "a.parquet":
        uri = write_parquet(tmp_path / name, **columns)
    else:
        uri = write_lines(tmp_path / name, {k: v for k, (v,) in columns.items()})
    with pytest.raises(ValueError, match=expected) as caught:
        imported_captions.check(granularity(uri))
    assert uri in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image_hash": [1], "text": ["t"]}, "found none among image_hash, text"),
        ({"url": ["u"], "text": [1]}, "text or caption, found none"),
        (
            {"url": ["u"], "text": ["t"], "sample_index": [0.5]},
            "expected whole numbers",
        ),
    ],
)
def test_parquet_columns_of_another_type_are_refused(tmp_path, columns, expected):
    uri = write_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(ValueError, match=expected):
        imported_captions.check(granularity(uri))


def test_files_that_name_images_differently_are_refused(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"url": "u", "text": "t"})
    write_lines(tmp_path / "b.jsonl", {"sample_id": HEX[0], "text": "t"})
    with pytest.raises(ValueError, match=r"in all files, found url in .*a.jsonl and"):
        imported_captions.check(granularity(tmp_path / "*.jsonl"))


def test_empty_files_are_fine_beside_others_but_not_alone(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="expected rows with captions"):
        imported_captions.check(granularity(tmp_path / "*.jsonl"))
    write_lines(tmp_path / "b.jsonl", {"url": "u", "text": "t"})
    imported_captions.check(granularity(tmp_path / "*.jsonl"))
    imported = imported_captions.list_files(granularity(tmp_path / "*.jsonl"))
    assert imported_captions.key_name(imported) == "url"
    assert read(str(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"neither one")
    with pytest.raises(ValueError, match=name):
        imported_captions.check(granularity(tmp_path / name))


def test_a_glob_without_match_or_with_other_files_is_refused(tmp_path):
    pattern = granularity(tmp_path / "*")
    with pytest.raises(ValueError, match="expected a glob that matches files"):
        imported_captions.list_files(pattern)
    (tmp_path / "a.csv").write_text("url,text")
    with pytest.raises(ValueError, match=r"files only, but it matches .*a\.csv"):
        imported_captions.list_files(pattern)


def test_the_digest_hangs_on_contents_alone(tmp_path):
    def digest(folder, **name_to_url):
        folder.mkdir()
        for name, url in name_to_url.items():
            write_lines(folder / f"{name}.jsonl", {"url": url, "text": "t"})
        listed = imported_captions.list_files(granularity(folder / "*.jsonl"))
        return imported_captions.contents_digest(listed)

    first = digest(tmp_path / "1", a="u", b="v")
    assert digest(tmp_path / "2", x="v", y="u") == first
    assert digest(tmp_path / "3", a="u") != first
    assert digest(tmp_path / "4", a="u", b="w") != first


def test_names_of_files_are_paths_within_the_folder_of_all(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_lines(tmp_path / folder / "0.jsonl", {"url": folder, "text": "t"})
    listed = imported_captions.list_files(granularity(tmp_path / "*" / "0.jsonl"))
    assert {file.name for file in listed} == {"a/0.jsonl", "b/0.jsonl"}
    (alone,) = imported_captions.list_files(granularity(tmp_path / "a" / "*.jsonl"))
    assert alone.name == "0.jsonl"
