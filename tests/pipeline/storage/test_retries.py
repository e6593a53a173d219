"""Calls that are made again: what passes, what stays, and that nothing is lost."""

import errno
import io
import os

import pytest
from apache_beam.io.filesystem import BeamIOError

from pipeline.storage import files, retries, timeouts
from tests.support.faulty_files import PREFIX, FaultyFileSystem

PASSING = OSError(errno.EIO, "Input/output error")


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(retries, "DELAY_S", 0.0)


class FailFirst:
    """The first calls of a kind fail."""

    def __init__(self, call: str, n: int, error: Exception = PASSING) -> None:
        self._call, self._n_left, self._error = call, n, error
        self.n_calls = 0

    def __call__(self, call: str, path: str) -> None:
        if call == self._call:
            self.n_calls += 1
            if self.n_calls <= self._n_left:
                raise self._error


def written(folder: str) -> bytes:
    files.write(f"{folder}/new", b"12")
    return files.read(f"{folder}/new")


CALLS = {
    "open": (lambda folder: files.read(f"{folder}/there"), b"0123"),
    "read": (lambda folder: files.read(f"{folder}/there"), b"0123"),
    "create": (written, b"12"),
    "write": (written, b"12"),
    "rename": (written, b"12"),
    "exists": (lambda folder: files.is_file(f"{folder}/there"), True),
    "list": (lambda folder: list(files.sizes(f"{folder}/*").values()), [4]),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_fails_for_a_moment_is_done_and_what_goes_on_failing_is_told(
    tmp_path, monkeypatch, call
):
    (tmp_path / "there").write_bytes(b"0123")
    function, expected = CALLS[call]
    for n_failures in (1, retries.N_RETRIES):
        faults = FailFirst(call, n_failures)
        monkeypatch.setattr(FaultyFileSystem, "before", faults)
        assert function(f"{PREFIX}{tmp_path}") == expected
        assert faults.n_calls > n_failures
    faults = FailFirst(call, 1000)
    monkeypatch.setattr(FaultyFileSystem, "before", faults)
    with pytest.raises(OSError, match="Input/output error"):
        function(f"{PREFIX}{tmp_path}")
    assert faults.n_calls == retries.N_RETRIES + 1


def test_a_file_whose_close_failed_is_written_again(tmp_path, monkeypatch):
    """Not all of its bytes need be there."""
    faults = FailFirst("close", 1)
    monkeypatch.setattr(FaultyFileSystem, "before", faults)
    files.write(f"{PREFIX}{tmp_path}/new", b"12")
    assert faults.n_calls == 2
    assert (tmp_path / "new").read_bytes() == b"12"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_that_was_read_is_closed_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "there").write_bytes(b"0123")
    faults = FailFirst("close", 1)
    monkeypatch.setattr(FaultyFileSystem, "before", faults)
    assert files.read(f"{PREFIX}{tmp_path}/there") == b"0123"
    assert faults.n_calls == 1


def test_a_folder_that_is_made_at_the_second_try(tmp_path, monkeypatch):
    """The local file system of Beam tells no error number of it."""
    error = OSError(OSError(errno.EIO, "Input/output error"))
    error.__context__ = PASSING
    monkeypatch.setattr(FaultyFileSystem, "before", FailFirst("mkdirs", 1, error))
    files.write(f"{PREFIX}{tmp_path}/folder/new", b"12")
    assert (tmp_path / "folder" / "new").read_bytes() == b"12"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        TimeoutError("expected an answer within 600 s"),
        BeamIOError("Match operation failed", {"p": PermissionError(errno.EACCES)}),
        BeamIOError("Match operation failed"),
        ValueError("a bug"),
    ],
)
def test_what_stays_what_it_is_is_raised_at_once(error):
    calls = []

    @retries.retry
    def call():
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        call()
    assert caught.value is error
    assert len(calls) == 1


def test_an_error_that_beam_holds_is_seen():
    errors = iter([BeamIOError("Match operation failed", {"p": PASSING})])

    @retries.retry
    def call():
        for error in errors:
            raise error
        return "done"

    assert call() == "done"


class LosesWhatItHad(io.BytesIO):
    """As a buffered reader: a read that fails has moved on."""

    is_broken = False

    def read(self, n_bytes: int | None = -1) -> bytes:
        self.is_broken = not self.is_broken
        if self.is_broken:
            super().read(3)
            raise PASSING
        return super().read(n_bytes)


def test_a_read_goes_on_where_it_was():
    data = os.urandom(1 << 20)
    with timeouts.reader("x", LosesWhatItHad(data)) as file:
        assert file.read(7) == data[:7]
        assert file.seek(500_001) == 500_001
        assert file.read() == data[500_001:]
