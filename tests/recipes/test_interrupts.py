"""Ctrl-C, readers that go away and full disks: one line each, in real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import command_line
from tests.support import small_run

LIMIT_S = 300


def started(module: str, *flags: object, **options) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, "-m", module, *map(str, flags)]
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)


def interrupted(
    process: subprocess.Popen[str], is_time: Callable[[], object], n_times: int = 1
) -> list[str]:
    """What it says on standard error once its terminal has sent Ctrl-C."""
    deadline_s = time.monotonic() + LIMIT_S
    while not is_time():
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    for _ in range(n_times):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in errors
    return errors.splitlines()


def test_a_web_that_is_being_drawn(tmp_path):
    process = started("pipeline.scenes", "--output", tmp_path, "--n-pairs", 100_000)
    *_, line = interrupted(process, lambda: list(tmp_path.glob("crawl/*")))
    assert line == "interrupted: the same command draws all of it again"
    assert process.returncode == 130


def test_a_program_that_only_begins(tmp_path):
    process = started("pipeline.run", "--output", tmp_path / "new")
    begun_s = time.monotonic()
    lines = interrupted(process, lambda: time.monotonic() - begun_s > 0.5)
    if process.returncode == 130:  # else it was faster
        assert lines == [
            "interrupted: nothing was written, the same command starts over"
        ]
    assert not (tmp_path / "new").exists()


def test_a_run_says_how_far_it_is_and_leaves_no_lock(tmp_path):
    small_run.write(tmp_path)
    output = tmp_path / "run [1]"
    process = started("pipeline.run", *arguments(tmp_path, output))
    progress = output / "progress.json"
    *_, line = interrupted(process, progress.exists)
    assert process.returncode == 130
    assert line.startswith("interrupted: score, ")
    assert line.endswith(" of 4 done; the same command goes on with the rest")
    assert not (output / "lock.json").exists()
    assert json.loads(progress.read_text())["current"]["state"] == "interrupted"


def test_a_second_interrupt_ends_a_program_too(tmp_path):
    process = started("pipeline.scenes", "--output", tmp_path, "--n-pairs", 100_000)
    interrupted(process, lambda: list(tmp_path.glob("crawl/*")), n_times=2)
    assert process.returncode in (130, -signal.SIGINT)


def arguments(root: Path, output: Path) -> list[str]:
    return list(small_run.arguments("curate", str(root), str(output)))


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_a_reader_that_is_gone_is_no_error(flag):
    reader, writer = os.pipe()
    os.close(reader)
    process = started("pipeline.photos", flag, stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_full_disk_behind_standard_output_is_one_line():
    program = (
        "from recipes import command_line; command_line.begin('__main__');"
        " print('a line')"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    expected = "error: [Errno 28] No space left on device: 'standard output'\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_a_flag_comes_once_whatever_its_value(capsys):
    parser = command_line.Parser(prog="program")
    parser.add_argument("--n", type=int, default=3)
    assert parser.parse_args(["--n", "3"]).n == 3
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--n", "3", "--n=4"])
    assert stopped.value.code == 2
    expected = "error: --n 4: expected the flag once; see program --help\n"
    assert capsys.readouterr().err == expected
