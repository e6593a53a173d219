"""Tests of tables: complete or absent, and the same rows when read back."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.records import Decision, Language
from pipeline.storage import files
from pipeline.storage.tables import (
    ROWS_PER_GROUP,
    LotTables,
    from_table,
    schema_of,
    to_table,
)


def test_rows_come_back_from_their_table(tmp_path):
    rows = [
        Decision(b"\0" * 16, "kept", None, None, "", ("flowers", "birds")),
        Decision(b"\1" * 16, "language", 0.25, 0.5, "de", ()),
    ]
    tables = LotTables(files.join(str(tmp_path), "decisions"))
    tables.write("lot", to_table(rows, Decision))
    assert from_table(tables.read("lot"), Decision) == rows


def test_no_rows_have_the_columns_and_types_of_rows(tmp_path):
    table = to_table([], Language)
    assert table.schema == pa.schema(
        [("code", pa.string()), ("probability", pa.float64())]
    )
    assert from_table(table, Language) == []


def test_some_rows_are_read_from_the_groups_that_hold_them(tmp_path):
    n_rows = 2 * ROWS_PER_GROUP + 10
    table = pa.table({"n": np.arange(n_rows), "other": np.zeros(n_rows)})
    tables = LotTables(str(tmp_path))
    tables.write("lot", table)
    for rows in ([0], [n_rows - 1], [n_rows - 1, ROWS_PER_GROUP - 1, 3, 3], []):
        assert tables.take("lot", rows).equals(table.take(pa.array(rows, pa.int64())))
    assert tables.take("lot", [ROWS_PER_GROUP], ["n"]).to_pydict() == {
        "n": [ROWS_PER_GROUP]
    }
    with pytest.raises(IndexError):
        tables.take("lot", [n_rows])


def test_nan_is_not_null():
    (row,) = from_table(to_table([Language("", math.nan)], Language), Language)
    assert math.isnan(row.probability)


def test_lots_are_those_with_a_complete_table(tmp_path):
    tables = LotTables(str(tmp_path))
    assert tables.lot_names() == frozenset()
    tables.write("lot.0", to_table([], Language))
    (tmp_path / "other.parquet.host-1-1.tmp").touch()
    assert tables.lot_names() == {"lot.0"}


def test_equal_rows_give_equal_bytes(tmp_path):
    rows = [Language("en", 0.5)] * 1000
    tables = [LotTables(str(tmp_path / name)) for name in "ab"]
    for table in tables:
        table.write("lot", to_table(rows, Language))
    assert files.read(tables[0].path("lot")) == files.read(tables[1].path("lot"))


def test_a_type_without_a_column_type_is_refused():
    row_type = dataclasses.make_dataclass("Row", [("value", complex)])
    with pytest.raises(KeyError, match="complex"):
        schema_of(row_type)
