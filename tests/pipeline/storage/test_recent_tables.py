import pyarrow as pa
import pytest

from pipeline.storage import files, recent_tables
from pipeline.storage.tables import LotTables
from tests.support import served_store

TABLES = LotTables("s3://bucket/run/pairs")
TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})


@pytest.fixture
def store():
    with served_store.serve("s3") as server:
        yield server


def test_a_table_that_was_written_is_not_asked_for(store):
    TABLES.write("one", TABLE)
    assert TABLES.read("one").equals(TABLE)
    assert TABLES.read("one", ["a"]).equals(TABLE.select(["a"]))
    assert store.counts() == {"put": 2, "head_bucket": 1}  # with its summary


def test_a_small_table_is_asked_for_once(store):
    TABLES.write("one", TABLE)
    recent_tables.forget()
    store.forget_requests()
    for columns in (["a"], None, ["b"]):
        assert TABLES.read("one", columns).equals(TABLE.select(columns or ["a", "b"]))
    assert store.counts() == {"get": 1}


def test_a_deleted_table_is_missing(store):
    TABLES.write("one", TABLE)
    files.delete(TABLES.folder, ["one.parquet"])
    with pytest.raises(FileNotFoundError, match="one"):
        TABLES.read("one")


def test_tables_that_were_used_long_ago_are_dropped(store, monkeypatch):
    del store
    monkeypatch.setattr(recent_tables, "_MAX_BYTES_IN_ALL", 25)
    for name in "abc":
        recent_tables.keep(name, bytes(10))
        recent_tables.find("a")
    assert [bool(recent_tables.find(name)) for name in "abc"] == [True, False, True]


def test_large_tables_are_not_kept(store):
    del store
    recent_tables.keep("large", bytes(recent_tables.MAX_BYTES + 1))
    assert recent_tables.find("large") is None
