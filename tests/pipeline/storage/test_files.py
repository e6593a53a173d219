"""Tests of files and tables: complete or absent, and the same when read back."""

import concurrent.futures
import dataclasses
import math

import pyarrow as pa
import pytest

from pipeline.records import Decision, Language
from pipeline.storage import files


def test_a_glob_gives_sorted_paths_or_none(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    expected = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    assert files.find(str(tmp_path / "*.tar")) == expected
    assert files.find(str(tmp_path / "*.parquet")) == ()


def test_a_file_is_written_with_its_folders_and_nothing_else(tmp_path):
    path = files.join(str(tmp_path), "new", "folder", "file")
    files.write(path, b"one")
    files.write(path, b"two")
    assert files.read(path) == b"two"
    assert [found.name for found in (tmp_path / "new" / "folder").iterdir()] == ["file"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = files.join(str(tmp_path), "new", "file")
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda _: files.write(path, b"x" * 1000), range(32)))
    assert files.read(path) == b"x" * 1000
    assert [found.name for found in (tmp_path / "new").iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        files.write(files.join(str(tmp_path / "file"), "name"), b"")


def test_compressed_files_are_not_unpacked(tmp_path):
    path = str(tmp_path / "a.gz")
    files.write(path, b"\x1f\x8b as it is")
    assert files.read(path) == b"\x1f\x8b as it is"


def test_deleted_files_are_gone(tmp_path):
    path = str(tmp_path / "a")
    files.write(path, b"")
    assert files.is_file(path)
    files.delete(str(tmp_path), ["a"])
    assert not files.is_file(path)


def test_rows_come_back_from_their_table(tmp_path):
    rows = [
        Decision(b"\0" * 16, "kept", None, None, "", ("flowers", "birds")),
        Decision(b"\1" * 16, "language", 0.25, 0.5, "de", ()),
    ]
    tables = files.UnitTables(files.join(str(tmp_path), "decisions"))
    tables.write("unit", files.to_table(rows, Decision))
    assert files.from_table(tables.read("unit"), Decision) == rows


def test_no_rows_have_the_columns_and_types_of_rows(tmp_path):
    table = files.to_table([], Language)
    assert table.schema == pa.schema(
        [("code", pa.string()), ("probability", pa.float64())]
    )
    assert files.from_table(table, Language) == []


def test_nan_is_not_null():
    (row,) = files.from_table(
        files.to_table([Language("", math.nan)], Language), Language
    )
    assert math.isnan(row.probability)


def test_units_are_those_with_a_complete_table(tmp_path):
    tables = files.UnitTables(str(tmp_path))
    assert tables.unit_names() == frozenset()
    tables.write("unit.0", files.to_table([], Language))
    (tmp_path / "other.parquet.host-1-1.tmp").touch()
    assert tables.unit_names() == {"unit.0"}


def test_equal_rows_give_equal_bytes(tmp_path):
    rows = [Language("en", 0.5)] * 1000
    tables = [files.UnitTables(str(tmp_path / name)) for name in "ab"]
    for table in tables:
        table.write("unit", files.to_table(rows, Language))
    assert files.read(tables[0].path("unit")) == files.read(tables[1].path("unit"))


def test_a_type_without_a_column_type_is_refused():
    row_type = dataclasses.make_dataclass("Row", [("value", complex)])
    with pytest.raises(KeyError, match="complex"):
        files.schema_of(row_type)
