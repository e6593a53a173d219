"""One run at a time in a run folder, also after crashes, and no leftovers of them."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pipeline import run
from pipeline.commands import running
from pipeline.engine import run_lock
from pipeline.storage import files

HOST = socket.gethostname()
CONFIG = "curation_configs/demo.py"

# Children are forked from a process that has imported everything but started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.pipeline.engine.test_run_lock"])


def hold(folder: str, told: Connection, renewal_s: float) -> None:
    """Holds the lock of a folder, and says so, until it is told how to end."""
    run_lock._RENEWAL_S = renewal_s
    with run_lock.acquire(folder, "curate"):
        told.send("held")
        if told.recv() == "fail":
            sys.exit(3)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.01)


@pytest.fixture
def start():
    """Starts processes that hold the lock of a folder; gives a pipe to each."""
    processes = []

    def started(folder: Path, renewal_s: float = 20) -> tuple[BaseProcess, Connection]:
        here, there = PROCESSES.Pipe()
        process = PROCESSES.Process(target=hold, args=(str(folder), there, renewal_s))
        process.start()
        processes.append(process)
        assert here.recv() == "held"
        return process, here

    yield started
    for process in processes:
        process.kill()
        process.join()


def written(folder: Path, **fields) -> None:
    """A lock of a live process on this host, unless the fields say otherwise."""
    now_s = time.time()
    holder = run_lock.Holder(
        **{"host": HOST, "pid": os.getppid(), "command": "score"}
        | {"started_s": now_s, "renewed_s": now_s}
        | fields
    )
    (folder / run_lock.NAME).write_bytes(run_lock._to_json(holder))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def expect_free(folder: Path) -> None:
    with run_lock.acquire(str(folder), "curate"):
        assert json.loads((folder / run_lock.NAME).read_text())["pid"] == os.getpid()
    assert not (folder / run_lock.NAME).exists()


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path, start):
    first, pipe = start(tmp_path)
    expected = rf"lock\.json: .*'curate' of pid {first.pid} on {HOST} showed life \d+ s"
    with pytest.raises(run_lock.LockedError, match=expected):
        run_lock.acquire(str(tmp_path), "curate")
    pipe.send("end")
    first.join()
    assert first.exitcode == 0
    expect_free(tmp_path)


def test_an_error_and_sigterm_remove_the_lock(tmp_path, start):
    failed, pipe = start(tmp_path)
    pipe.send("fail")
    failed.join()
    assert failed.exitcode == 3
    assert not (tmp_path / run_lock.NAME).exists()
    ended, _ = start(tmp_path)
    ended.terminate()
    ended.join()
    assert ended.exitcode == -signal.SIGTERM
    assert not (tmp_path / run_lock.NAME).exists()


def test_the_lock_of_a_killed_process_of_this_host_is_taken_over(
    tmp_path, start, capsys
):
    killed, _ = start(tmp_path)
    killed.kill()
    killed.join()
    assert (tmp_path / run_lock.NAME).exists()
    expect_free(tmp_path)
    expected = f"takes over the lock of pid {killed.pid} on {HOST}, which is gone\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("fields", "age_s", "is_free"),
    [
        ({"host": "elsewhere"}, 100, False),
        ({"host": "elsewhere"}, 130, True),
        ({"host": "elsewhere", "pid": 1 << 21}, 100, False),
        ({}, 100, False),
        ({}, 130, True),
        ({"pid": 1 << 21}, 0, True),
        ({"host": "elsewhere"}, -500, False),  # of a clock that is ahead
    ],
)
def test_a_lock_expires_unless_its_process_is_seen_to_be_dead(
    tmp_path, fields, age_s, is_free
):
    written(tmp_path, renewed_s=1000.0, **fields)
    arguments = (str(tmp_path), "curate", lambda: 1000.0 + age_s)
    if is_free:
        with run_lock.acquire(*arguments):
            pass
    else:
        with pytest.raises(run_lock.LockedError):
            run_lock.acquire(*arguments)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"pid": "x"}'])
def test_a_lock_that_is_not_yet_written_expires_too(tmp_path, content):
    (tmp_path / run_lock.NAME).write_bytes(content)
    with pytest.raises(run_lock.LockedError, match="unknown"):
        run_lock.acquire(str(tmp_path), "curate")
    os.utime(tmp_path / run_lock.NAME, (0, time.time() - 130))
    expect_free(tmp_path)


def test_of_two_runs_that_take_over_at_once_the_later_one_gets_the_lock(
    tmp_path, monkeypatch
):
    written(tmp_path, pid=dead_pid())
    monkeypatch.setattr(time, "sleep", lambda seconds: written(tmp_path, host="other"))
    with pytest.raises(run_lock.LockedError, match="one has just begun"):
        run_lock.acquire(str(tmp_path), "curate")


def test_without_atomic_creation_the_lock_works_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "create", lambda path, data: False)
    with run_lock.acquire(str(tmp_path), "curate"), pytest.raises(run_lock.LockedError):
        run_lock.acquire(str(tmp_path), "curate")
    expect_free(tmp_path)


def test_a_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_RENEWAL_S", 0.01)
    now_s = iter(range(10**6))
    with run_lock.acquire(str(tmp_path), "curate", lambda: float(next(now_s))):
        deadline_s = time.monotonic() + 10
        while run_lock._read(str(tmp_path / run_lock.NAME)).renewed_s < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_lost_its_lock_ends_and_leaves_it_to_the_other(tmp_path, start):
    loser, _ = start(tmp_path, 0.01)
    while loser.is_alive():  # a renewal may fall between
        written(tmp_path, host="other")
        loser.join(0.05)
    assert loser.exitcode == 1
    assert json.loads((tmp_path / run_lock.NAME).read_text())["host"] == "other"


# The command line


def arguments(folder: Path, command: str) -> list[str]:
    (folder / "0.tar").write_bytes(b"")
    shard = str(folder / "0.tar")
    sets = ("--eval", f"e={shard}", "--seeds", f"s={shard}")
    base = ("--config", CONFIG, "--output", str(folder / "run"), "--input", shard)
    return [command, *base, *sets]


def test_a_second_run_is_refused_with_one_line_while_status_looks_on(tmp_path, capsys):
    with run_lock.acquire(str(tmp_path / "run"), "curate"):
        with pytest.raises(SystemExit) as stopped:
            run.main(arguments(tmp_path, "score"))
        assert stopped.value.code == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"'curate' of pid {os.getpid()} on {HOST}" in error
        before = sorted((tmp_path / "run").iterdir())
        run.main(arguments(tmp_path, "status"))
        assert "scored: 0 of 1 lots, 0 pairs, " in capsys.readouterr().out
        assert sorted((tmp_path / "run").iterdir()) == before


def test_a_run_holds_the_lock_over_its_stages_and_removes_leftovers(
    tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "run" / "scores"
    folder.mkdir(parents=True)
    (folder / f"a.parquet.{HOST}-{dead_pid()}-1.tmp").touch()
    seen = []

    def look(stage, *rest):
        seen.append((stage, (tmp_path / "run" / run_lock.NAME).exists()))

    monkeypatch.setattr(running, "_run_stage", look)
    monkeypatch.setattr(running, "_report", lambda *_: None)
    run.main(arguments(tmp_path, "curate"))
    expected = [(stage, True) for stage in ("score", "select", "caption", "export")]
    assert seen == expected
    assert "removed: 1 temporary files\n" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "run" / run_lock.NAME).exists()


@pytest.mark.parametrize("command", ["curate", "remove"])
def test_a_folder_that_may_not_be_written_to_fails_the_run(
    tmp_path, capsys, monkeypatch, command
):
    def refuse(path, data):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(files, "create", refuse)
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments(tmp_path, command))
    assert stopped.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: .*Permission denied: '.*/run/lock\.json'", error)


# Leftovers


def test_leftovers_of_dead_or_expired_writers_are_removed_and_no_other_files(tmp_path):
    dead, alive = dead_pid(), os.getppid()
    name_to_age_s = {
        f"lock.json.{HOST}-{dead}-1.tmp": 0,
        f"scores/pairs-1/a.b.parquet.{HOST}-{dead}-140.tmp": 0,
        f"scores/b.parquet.{HOST}-{alive}-1.tmp": 9000,
        f"scores/c.parquet.other-{HOST}-{dead}-1.tmp": 0,
        "tfrecords/d.elsewhere-1-1.tmp": 3500,
        "tfrecords/e.elsewhere-1-1.tmp": 3700,
        "notes.tmp": 9000,
        "scores/f.parquet": 9000,
    }
    now_s = time.time()
    for name, age_s in name_to_age_s.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, now_s - age_s))
    assert run_lock.remove_leftovers(str(tmp_path), lambda: now_s) == 3
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    names = list(name_to_age_s)
    assert left == {names[2], names[3], names[4], names[6], names[7]}
    assert run_lock.remove_leftovers(str(tmp_path), lambda: now_s) == 0
