"""Kills and failing file systems: after a restart, the bytes of an undisturbed run."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (for the children: it takes seconds)

from pipeline import run
from pipeline.config.curation import ImageTextSource
from pipeline.engine import run_lock
from pipeline.engine.run_folder import RunFolder
from pipeline.scoring import stage as scoring
from pipeline.storage import retries, timeouts
from pipeline.storage.tables import SUMMARY_SUFFIX
from tests.pipeline.scoring.test_stage import make_run, png, score, write_shard
from tests.support import small_run
from tests.support.faulty_files import PREFIX, FailNowAndThen, FaultyFileSystem, Hang
from tests.support.tiny_run import outputs_of

N_PARTS, N_KILLS = 2, 7  # of each stage

# Children are forked from a process that has imported everything but started nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.system.test_faults"])

# Written by every command, or once all lots are done.
SUMMARIES = {"config.json", "ledger.json", "lock.json", "progress.json"}
STAGE_TO_OUTPUTS = {
    "score": ("scores/pairs-*", "scores/language-*", "scores/embedding-*"),
    "select": ("decisions",),
    "caption": ("captions", "scores/caption_language-*", "flags"),
    "export": ("tfrecords",),
}

Prepare = Callable[[], None]


def nothing() -> None: ...


def command(arguments: tuple[str, ...], root: Path, prepare: Prepare) -> None:
    """The real command line, with programs that are compiled once for all children."""
    with open(root / "stderr", "w") as stderr:
        os.dup2(stderr.fileno(), sys.stderr.fileno())
    cache = jax.config.jax_compilation_cache_dir or str(root / "cache")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    run_lock._SETTLE_S = 0.05
    prepare()
    run.main(arguments)


def started(
    root: Path, stage: str, output: str, prepare: Prepare = nothing, prefix: str = ""
) -> BaseProcess:
    arguments = small_run.arguments(stage, f"{prefix}{root}", output)
    process = PROCESSES.Process(target=command, args=(arguments, root, prepare))
    process.start()
    return process


def finished(process: BaseProcess) -> int:
    process.join()
    return process.exitcode


def error_of(root: Path) -> str:
    """The line with which the last command failed, behind what Beam has to say."""
    line = (root / "stderr").read_text().splitlines()[-1]
    assert line.startswith("error: "), line
    return line


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, the crawl and `quiet`, an undisturbed run."""
    root = tmp_path_factory.mktemp("small")
    small_run.write(root)
    assert finished(started(root, "curate", str(root / "quiet"))) == 0
    return root


def lots_of(output: Path, stage: str) -> dict[Path, tuple[int, int]]:
    """Finished tables or shards of a stage, with what changes if they are rewritten."""
    folders = [f for glob in STAGE_TO_OUTPUTS[stage] for f in output.glob(glob)]
    paths = [p for f in folders for p in f.rglob("*.parquet") if is_complete(p)]
    if stage == "export":
        paths = list(output.glob("tfrecords/*.tfrecord"))
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths}


def is_complete(table: Path) -> bool:
    """Whether a table has its summary, without which it is made again."""
    return table.with_suffix(SUMMARY_SUFFIX).exists()


def without_stage(root: Path, output: Path, stage: str) -> None:
    """A copy of the undisturbed run as it was before a stage began."""
    shutil.copytree(root / "quiet", output)
    first = small_run.STAGES.index(stage)
    for later in small_run.STAGES[first:]:
        for glob in STAGE_TO_OUTPUTS[later]:
            for folder in output.glob(glob):
                shutil.rmtree(folder)


def forget_half(output: Path, stage: str, rng: np.random.Generator) -> None:
    """So that there is work for more kills."""
    paths = sorted(lots_of(output, stage))
    for path in rng.permutation(paths)[: -(-len(paths) // 2)]:
        path.unlink()


def kill_at_random(
    process: BaseProcess, output: Path, stage: str, rng: np.random.Generator
) -> None:
    """At work in two cases of three, else at any moment, as while a model loads."""
    if rng.random() < 2 / 3:
        before = lots_of(output, stage).keys()
        while process.is_alive() and lots_of(output, stage).keys() == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
    else:
        time.sleep(rng.uniform(0, 5))
    process.kill()  # unless it has ended by itself
    process.join()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(N_PARTS))
@pytest.mark.parametrize("stage", small_run.STAGES)
def test_a_kill_changes_no_byte_and_repeats_no_lot(small, tmp_path, stage, part):
    output, rng = tmp_path / "run", np.random.default_rng(part)
    without_stage(small, output, stage)
    tally: Counter[str] = Counter()
    while tally["kills"] < N_KILLS:
        before = lots_of(output, stage)
        process = started(small, stage, str(output))
        kill_at_random(process, output, stage, rng)
        after = lots_of(output, stage)
        assert after.items() >= before.items()
        is_killed = process.exitcode == -signal.SIGKILL
        assert is_killed or process.exitcode == 0
        tally["kills"] += is_killed
        tally["with lots finished in the attempt"] += is_killed and after != before
        if not is_killed or len(after) == len(lots_of(small / "quiet", stage)):
            forget_half(output, stage, rng)
            tally["times half was taken away"] += 1
    print(stage, json.dumps(tally))  # `pytest -s` shows it
    for rest in small_run.STAGES[small_run.STAGES.index(stage) :]:
        assert finished(started(small, rest, str(output))) == 0
    assert outputs_of(output) == outputs_of(small / "quiet")


# File systems


@pytest.mark.parametrize(("share", "is_stopped"), [(0.03, False), (0.25, True)])
def test_score_resumes_after_a_failing_file_system(
    tmp_path, monkeypatch, share, is_stopped
):
    monkeypatch.setattr(retries, "DELAY_S", 0.0)
    (tmp_path / "crawl").mkdir()
    for name in "abc":
        shard = tmp_path / "crawl" / f"{name}.tar"
        write_shard(shard, *[(png(ord(name) + i), b"a text") for i in range(3)])
    source = ImageTextSource("web", f"{PREFIX}{tmp_path}/crawl/*.tar")
    opened = make_run(tmp_path, sources=(source,))
    quiet, failing = (
        dataclasses.replace(opened, root=f"{PREFIX}{tmp_path}/{name}")
        for name in ("quiet", "failing")
    )
    score(quiet)
    faults = FailNowAndThen(share, rng_seed=0)
    monkeypatch.setattr(FaultyFileSystem, "before", faults)
    n_attempts, before = 1, {}
    while not is_scored(failing):
        assert (n_attempts := n_attempts + 1) < 30
        after = lots_of(tmp_path / "failing", "score")
        assert after.items() >= before.items()
        before = after
    assert faults.n_failures > 0
    assert (n_attempts > 1) == is_stopped
    monkeypatch.setattr(FaultyFileSystem, "before", staticmethod(lambda *call: None))
    scoring.remove_outdated(failing)
    assert outputs_of(tmp_path / "failing") == outputs_of(tmp_path / "quiet")


def is_scored(failing: RunFolder) -> bool:
    """Scores what is left; whether no call failed."""
    try:
        score(failing)
    except (OSError, RuntimeError):  # Beam makes the one of the other
        return False
    return True


@pytest.mark.slow
def test_a_file_system_that_fails_one_call_in_a_hundred_changes_no_byte(
    small, tmp_path
):
    """Its calls fail in all stages; they are made again."""
    quiet = tmp_path / "quiet"
    assert finished(started(small, "curate", f"{PREFIX}{quiet}", prefix=PREFIX)) == 0
    for rng_seed in range(3):
        output = tmp_path / f"run-{rng_seed}"
        fail = FailNowAndThen(0.01, rng_seed)
        process = started(small, "curate", f"{PREFIX}{output}", Before(fail), PREFIX)
        assert finished(process) == 0
        n_failures = (small / "stderr").read_text().count("trying again in")
        print(n_failures, "calls failed")  # `pytest -s` shows it
        assert n_failures > 0
        assert outputs_of(output) == outputs_of(quiet)


@dataclasses.dataclass
class Before:
    """Makes calls fail."""

    fail: FailNowAndThen

    def __call__(self) -> None:
        FaultyFileSystem.before = self.fail


class HangOnce:
    """Makes one call hang, and the bound on calls short."""

    def __init__(self, call: str, number: int) -> None:
        self._hang = (call, number)

    def __call__(self) -> None:
        FaultyFileSystem.before = Hang(*self._hang)
        timeouts.TIMEOUT_S = 2.0


@pytest.mark.slow
def test_a_file_system_that_hangs_ends_the_run_with_one_line(small, tmp_path):
    quiet, output = tmp_path / "quiet", tmp_path / "run"
    assert finished(started(small, "curate", f"{PREFIX}{quiet}", prefix=PREFIX)) == 0
    places = [("mkdirs", 1), ("open", 9), ("read", 40), ("write", 12), ("rename", 20)]
    for call, number in [*places, ("exists", 50), ("list", 12), ("close", 60)]:
        prepare, start_s = HangOnce(call, number), time.monotonic()
        process = started(small, "curate", f"{PREFIX}{output}", prepare, PREFIX)
        process.join(60)
        assert process.exitcode == 1, (call, number)
        expected = "expected an answer within 2 s"
        assert expected in error_of(small)
        print(call, number, process.exitcode, f"{time.monotonic() - start_s:.1f} s")
    assert finished(started(small, "curate", f"{PREFIX}{output}", prefix=PREFIX)) == 0
    assert outputs_of(output) == outputs_of(quiet)


# Disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 16 KiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=16k", "-t", "tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(folder: Path, options: str, *more: str) -> None:
    done = subprocess.run(
        ["mount", *more, "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"expected to be allowed to mount: {done.stderr.strip()}")


@pytest.mark.slow
def test_a_full_or_read_only_disk_costs_no_more_than_a_restart(small, disk):
    output, n_full = disk / "run", 0
    mount(disk, "remount,ro")
    assert finished(started(small, "curate", str(output))) == 1
    assert "Read-only file system" in error_of(small)
    for n_kib in range(16, 16 + 60 * 24, 24):
        mount(disk, f"remount,rw,size={n_kib}k")
        before = all_lots(output)
        if finished(started(small, "curate", str(output))) == 0:
            break
        assert "No space left on device" in error_of(small)
        assert all_lots(output).items() >= before.items()
        n_full += 1
    print(f"{n_full} attempts on a full disk, done with {n_kib} KiB")
    assert n_full > 3
    assert outputs_of(output) == outputs_of(small / "quiet")


def all_lots(output: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: stamp
        for stage in small_run.STAGES
        for path, stamp in lots_of(output, stage).items()
    }
