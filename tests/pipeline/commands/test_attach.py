"""A launcher dies while its job runs: the job is found again, waited for or ended."""

import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline import run
from pipeline.commands import attach
from pipeline.engine import run_lock
from tests.support import gated_captioner, job_service, small_run

LIMIT_S = 120
GATED = """
import dataclasses
ungated = get_config

def get_config():
    gated = captions.Granularity(
        "gated", {gate!r}, "said", captioner="tests.support.gated_captioner:Gated"
    )
    return dataclasses.replace(ungated(), granularities=(gated,))
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> pathlib.Path:
    """A crawl, and a run over it up to `caption`."""
    folder = tmp_path_factory.mktemp("web")
    small_run.write(folder)
    recipe = folder / "recipe.py"
    recipe.write_text(recipe.read_text() + GATED.format(gate=str(folder / "gate")))
    for stage in ("score", "select"):
        run.main(small_run.arguments(stage, str(folder), str(folder / "run")))
    return folder


@pytest.fixture
def gate(web) -> Iterator[pathlib.Path]:
    """The file that opens the gate; a worker that still waits is let go at the end."""
    for name in ("gate", "gate.reached"):
        (web / name).unlink(missing_ok=True)
    yield web / "gate"
    (web / "gate").touch()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.01)
    monkeypatch.setattr(attach, "_PAUSE_S", 0.05)


@pytest.fixture(
    scope="module", params=["local", pytest.param("prism", marks=pytest.mark.cloud)]
)
def flags(request, tmp_path_factory) -> Iterator[Sequence[str]]:
    """Those of a job service that outlives every launcher."""
    with job_service.environment_of_workers():
        if request.param == "prism":
            with job_service.prism(tmp_path_factory.mktemp("prism")) as flags:
                yield flags
        else:
            with job_service.running() as flags:
                yield (*flags, *job_service.SUBPROCESSES)


@pytest.fixture
def output(web, tmp_path) -> pathlib.Path:
    """A run folder without captions."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", web / "run", folder], check=True)
    return folder


@pytest.fixture
def launched(web, output, gate, flags) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose job is at the gate."""
    words = small_run.arguments("caption", str(web), str(output))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.run", *words, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=job_service.ROOT,
    )
    try:
        wait_for((web / "gate.reached").is_file)
        wait_for(lambda: run_lock.named_job(str(output)) is not None)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(is_there: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_there():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def ended(process: subprocess.Popen[str], number: int) -> str:
    """What a launcher that gets a signal says last."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    return errors


def said(capsys, *words: str, code: int = 0) -> str:
    """What a command prints, on both streams."""
    if code:
        with pytest.raises(SystemExit) as stopped:
            run.main(words)
        assert stopped.value.code == code
    else:
        run.main(words)
    captured = capsys.readouterr()
    return captured.out + captured.err


def lock_of(output: pathlib.Path) -> dict:
    return json.loads((output / run_lock.NAME).read_text())


def test_a_killed_launcher_is_followed_by_attach_and_then_by_the_same_command(
    web, output, gate, launched, flags, capsys
):
    job = lock_of(output)["job"]
    assert job["stage"] == "caption"
    assert f"--job_endpoint={job['place']}" in flags
    ended(launched, signal.SIGKILL)
    words = small_run.arguments("caption", str(web), str(output))
    refused = said(capsys, *words, code=2)
    (line,) = [one for one in refused.splitlines() if one.startswith("error: ")]
    assert f"job {job['job_id']} of caption (PortableRunner at " in line
    assert "is RUNNING and its launcher is gone: `python -m pipeline.run attach" in line
    status = said(capsys, "status", "--output", str(output))
    assert status.startswith("left: caption: 0 of 3; `python -m pipeline.run attach ")
    assert f"job {job['job_id']} of caption" in status
    assert ": RUNNING\n" in status
    gate.touch()
    assert "captions_written 2" in said(capsys, "attach", "--output", str(output))
    assert not (output / run_lock.NAME).exists()
    assert "caption: " in said(capsys, *words)
    assert "no job is left" in said(capsys, "attach", "--output", str(output))


def test_ctrl_c_says_that_the_job_goes_on_and_attach_cancels_it(
    output, gate, launched, capsys
):
    job_id = lock_of(output)["job"]["job_id"]
    last = ended(launched, signal.SIGINT).splitlines()[-1]
    assert last.startswith(f"interrupted: job {job_id} of caption")
    assert last.endswith("` waits for it, and with --cancel ends it")
    assert launched.returncode == 130
    cancelled = said(capsys, "attach", "--output", str(output), "--cancel")
    assert f"job {job_id} of caption" in cancelled
    assert "is CANCELLED: the same command goes on" in cancelled
    assert not (output / run_lock.NAME).exists()


def test_a_job_that_fails_ends_attach_as_it_would_its_launcher(
    output, gate, launched, capsys
):
    assert "may go on: `python -m " in ended(launched, signal.SIGTERM)
    gate.write_text(gated_captioner.FAIL)
    failed = said(capsys, "attach", "--output", str(output), code=1)
    assert "the captioner is out of ink" in failed.splitlines()[-1]
    assert not (output / run_lock.NAME).exists()


def test_a_folder_that_is_no_run_stays_as_it_is(tmp_path, capsys):
    nothing = tmp_path / "nothing"
    with pytest.raises(SystemExit) as error:
        run.main(["attach", "--output", str(nothing)])
    assert error.value.code == 2
    assert "expected a run folder with config.json" in capsys.readouterr().err
    assert not nothing.exists()
