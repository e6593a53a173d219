"""Summaries: those of tables that are there, each read once for many commands."""

import glob
import json

import pytest

from pipeline.engine.summaries import CACHE_NAME, Summaries, read_folders
from pipeline.storage import files, object_clients
from tests.support import simulated_store

N_LOTS = 100  # enough for a cache


def write_lots(folder, names) -> None:
    for number, name in enumerate(names):
        (folder / f"{name}.parquet").write_bytes(b"table")
        (folder / f"{name}.summary.json").write_text(json.dumps({"rows": number}))


@pytest.fixture
def folder(tmp_path):
    """A folder of tables with their summaries."""
    write_lots(tmp_path, [f"lot-{number:03d}" for number in range(N_LOTS)])
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """The paths that are read one by one."""
    paths: list[str] = []
    read_many = files.read_many

    def note(asked):
        paths.extend(asked)
        return read_many(asked)

    monkeypatch.setattr(files, "read_many", note)
    return paths


def test_a_lot_is_there_if_its_table_and_its_summary_are(folder):
    (folder / "lot-001.summary.json").unlink()
    (folder / "lot-002.parquet").unlink()
    found = Summaries.read(str(folder))
    assert list(found) == [f"lot-{n:03d}" for n in range(N_LOTS) if n not in (1, 2)]
    assert found["lot-003"] == {"rows": 3}
    assert sum(one["rows"] for one in found.values()) == sum(range(N_LOTS)) - 1 - 2
    assert not Summaries.read(str(folder / "none"))


def test_summaries_that_are_as_they_were_come_from_one_file(folder, reads):
    Summaries.read(str(folder)).write_cache()
    assert len(reads) == N_LOTS
    reads.clear()
    assert Summaries.read(str(folder))["lot-099"] == {"rows": 99}
    assert reads == []
    (folder / "lot-050.summary.json").write_text('{"rows": 1234}')
    (folder / "lot-051.summary.json").unlink()
    write_lots(folder, ["lot-new"])
    found = Summaries.read(str(folder))
    assert sorted(reads) == [
        str(folder / f"lot-{n}.summary.json") for n in ("050", "new")
    ]
    assert found["lot-050"] == {"rows": 1234}
    assert "lot-051" not in found
    assert found["lot-new"] == {"rows": 0}
    found.write_cache()
    reads.clear()
    assert dict(Summaries.read(str(folder))) == dict(found)
    assert reads == []


def test_the_file_is_written_when_it_lacks_something(folder):
    path = folder / CACHE_NAME
    Summaries.read(str(folder)).write_cache()
    written_ns = path.stat().st_mtime_ns
    Summaries.read(str(folder)).write_cache()
    assert path.stat().st_mtime_ns == written_ns
    (folder / "lot-001.summary.json").unlink()
    Summaries.read(str(folder)).write_cache()
    assert path.stat().st_mtime_ns > written_ns


def test_few_summaries_need_no_file(tmp_path):
    write_lots(tmp_path, ["a", "b"])
    Summaries.read(str(tmp_path)).write_cache()
    assert not (tmp_path / CACHE_NAME).exists()


def test_the_file_is_no_table_and_no_summary(folder):
    Summaries.read(str(folder)).write_cache()
    for ending in ("parquet", "json"):
        assert len(glob.glob(f"{folder}/*.{ending}")) == N_LOTS


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000, b"table"])
def test_a_damaged_file_is_as_good_as_none(folder, reads, data):
    (folder / CACHE_NAME).write_bytes(data)
    assert len(Summaries.read(str(folder))) == len(reads) == N_LOTS


def test_damaged_summaries_are_named_in_one_line(folder):
    for number, data in enumerate((b"", b"{", b"[1]", b"\xff", b"1")):
        (folder / f"lot-{number:03d}.summary.json").write_bytes(data)
    with pytest.raises(ValueError, match="expected objects in JSON, but") as caught:
        Summaries.read(str(folder))
    names = ", ".join(f"lot-00{number}.summary.json" for number in range(3))
    named = f"{names} and 2 more are damaged"
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_folders_are_read_together(folder, tmp_path):
    found = read_folders([str(folder), str(tmp_path / "none")])
    assert [len(one) for one in found] == [N_LOTS, 0]


@pytest.fixture
def store(monkeypatch):
    with simulated_store.start() as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        object_clients.forget_clients()
        yield store
    object_clients.forget_clients()


@pytest.mark.parametrize(
    "n_lots", [2_000, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_many_lots_of_a_store_are_a_few_requests(store, n_lots):
    summary = json.dumps({"rows": 10**6, "counters": {f"c{n}": n for n in range(200)}})
    names = [f"lot-{number:05d}" for number in range(n_lots)]
    store.put({f"run/scores/{name}.summary.json": summary.encode() for name in names})
    store.put({f"run/scores/{name}.parquet": b"table" for name in names})
    folder, n_pages = "s3://bucket/run/scores", 2 * n_lots // 1000
    found = Summaries.read(folder)
    assert list(found) == names
    counts = store.take_counts()
    assert counts["get", "run/scores"] == n_lots + 1  # for a cache that is not there
    assert counts["list", "run/scores"] == n_pages
    found.write_cache()
    store.put({"run/scores/lot-00007.summary.json": b"{}"})
    store.take_counts()
    assert Summaries.read(folder)["lot-00007"] == {}
    counts = store.take_counts()
    assert counts["get", "run/scores"] == 2
    assert counts["list", "run/scores"] <= n_pages + 2
