"""Calls of file systems: they end, and what they read and write is what it was."""

import io
import os
import resource

import pytest

from pipeline.engine import run_lock
from pipeline.storage import files, timeouts
from tests.support.faulty_files import PREFIX, FaultyFileSystem, Hang


def test_a_call_gives_its_result_or_its_error(monkeypatch):
    assert timeouts.call_with_timeout("x", max, [1, 2], key=lambda n: -n) == 1
    with pytest.raises(TimeoutError, match=r"^its own$"):
        timeouts.call_with_timeout("x", raise_timeout)


def raise_timeout() -> None:
    raise TimeoutError("its own")


@pytest.mark.parametrize(
    ("hanging", "call"),
    [
        ("open", lambda folder: files.read(f"{folder}/there")),
        ("read", lambda folder: files.read(f"{folder}/there")),
        ("create", lambda folder: files.write(f"{folder}/new", b"1")),
        ("write", lambda folder: files.write(f"{folder}/new", b"1")),
        ("close", lambda folder: files.write(f"{folder}/new", b"1")),
        ("close", lambda folder: files.read(f"{folder}/there")),
        ("rename", lambda folder: files.write(f"{folder}/new", b"1")),
        ("mkdirs", lambda folder: files.write(f"{folder}/new/file", b"1")),
        ("exists", lambda folder: files.is_file(f"{folder}/there")),
        ("list", lambda folder: files.find(f"{folder}/*")),
        ("delete", lambda folder: files.delete(folder, ["there"])),
    ],
)
def test_a_call_that_hangs_is_one_line(tmp_path, monkeypatch, hanging, call):
    (tmp_path / "there").write_bytes(b"0")
    monkeypatch.setattr(timeouts, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(Hang(hanging, 1)))
    expected = rf"{PREFIX}{tmp_path}.*: expected an answer within 0\.05 s$"
    with pytest.raises(TimeoutError, match=expected):
        call(f"{PREFIX}{tmp_path}")
    assert not (tmp_path / "new").exists()


def test_what_is_read_through_the_bound_is_the_file(tmp_path):
    data = os.urandom(1_000_000)
    (tmp_path / "file").write_bytes(data)
    with files.open_for_reading(f"{PREFIX}{tmp_path}/file") as file:
        assert file.read(10) == data[:10]
        assert file.seek(500_000) == 500_000
        assert file.read(300_000) == data[500_000:800_000]
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert (file.read(), file.read()) == (data[-5:], b"")
        assert file.tell() == len(data)
    assert files.read(f"{PREFIX}{tmp_path}/file") == data


def test_much_is_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(timeouts, "_WRITE_BYTES", 1000)
    calls = []
    monkeypatch.setattr(
        FaultyFileSystem, "before", staticmethod(lambda call, path: calls.append(call))
    )
    data = os.urandom(2500)
    files.write(f"{PREFIX}{tmp_path}/file", data)
    assert calls.count("write") == 3
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_leaves_no_empty_lock(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            run_lock.acquire(str(tmp_path), "curate")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    with run_lock.acquire(str(tmp_path), "curate"):
        pass
