"""Measures what the launcher does for a run of a million shards on a store.

    python -m benchmarks.launcher [--shards 1000000] [--latency-ms 60]

The store is that of the tests: its shards are numbered, an answer takes so long, and
requests are counted. One lot is made for real, on a local disk, and its tables stand
for those of all lots. Then come `status`, a `curate` with nothing to do, and a `curate`
after 1, 10 and 100 more shards, whose jobs are not run: when one is started, its tables
are put into the store as workers would write them. What is left is the launcher's work.
Prints a table of seconds, seconds of processors, requests and peak memory.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam

from pipeline import curate
from pipeline.captioning import flag_counts
from pipeline.commands import run_record, running
from pipeline.commands.arguments import STAGES
from pipeline.engine.run_folder import LEDGER_NAME, RunFolder
from pipeline.engine.summaries import Summaries
from pipeline.run import main as run_command
from pipeline.run import open_run
from pipeline.storage import object_clients
from tests.support import simulated_store, small_run
from tests.support.simulated_store import BUCKET, Numbered, SimulatedStore

OUTPUT = f"s3://{BUCKET}/run"
_KINDS = ("scores", "decisions", "captions", "flags")
_JOB = "job: "  # how a command names the job that it starts
_STAGE_TO_KINDS = {
    "score": ("scores",),
    "select": ("decisions",),
    "caption": ("scores", "captions"),
    "flag": ("flags",),
}
_GROWTHS = (1, 10, 100)
_N_FOLDERS = 12  # that a line names
_BEHIND = "9999999"  # how names of new shards begin


@dataclasses.dataclass(frozen=True)
class Template:
    """A run of one lot on a local disk, whose tables stand for those of all lots."""

    run: RunFolder

    def objects(self, kind: str, run: RunFolder) -> dict[str, bytes]:
        """The tables of one kind of all lots of another run, by key."""
        here, place = Path(self.run.root), run.root.partition(f"{BUCKET}/")[2]
        found: dict[str, bytes] = {}
        for path in (here / kind).rglob("*"):
            if path.is_dir():
                continue
            folder = f"{place}/{kind}/{self._folder(kind, path.parent.name, run)}"
            data = self._adapt(path, run)
            found |= {f"{folder}/{name}": data for name in self._names(path.name, run)}
        return found

    def _folder(self, kind: str, name: str, run: RunFolder) -> str:
        if kind == "decisions":
            return run.decisions_fingerprint
        return run.flags_fingerprint if kind == "flags" else name

    def _names(self, name: str, run: RunFolder) -> list[str]:
        (lot,) = self.run.lots
        for old, new in ((lot.name, "name"), (lot.base, "base")):
            if name.startswith(old):
                return [getattr(one, new) + name[len(old) :] for one in run.lots]
        return [name]

    def _adapt(self, path: Path, run: RunFolder) -> bytes:
        """The bytes of a file, with what a summary or a ledger says of the pool."""
        old, new = self.run.pool_fingerprint, run.pool_fingerprint
        data = path.read_bytes()
        if path.name == LEDGER_NAME:
            data = json.dumps(_multiplied(json.loads(data), len(run.lots))).encode()
        if path.name == flag_counts.RECEIPT_NAME:
            old, new = self.run.flag_inputs_fingerprint, run.flag_inputs_fingerprint
        is_text = path.suffix == ".json"
        return data.replace(old.encode(), new.encode()) if is_text else data


def _multiplied(value: Any, n: int) -> Any:
    if isinstance(value, dict):
        return {name: _multiplied(one, n) for name, one in value.items()}
    return value * n if isinstance(value, int) else value


class Simulation:
    """A run of many lots in a simulated store, and the commands that look at it."""

    def __init__(self, store: SimulatedStore, scratch: Path, latency_s: float) -> None:
        self._store = store
        self._latency_s = latency_s
        self._recipe = scratch / "recipe.py"
        small_run.write(scratch)
        local = self._flags(str(scratch / "crawl" / "0.tar"), str(scratch / "run"))
        subprocess.run(_command("curate", *local), check=True, capture_output=True)
        self._template = Template(open_run(["curate", *local]))
        self._flags_of_run = self._flags(f"s3://{BUCKET}/crawl/*.tar", OUTPUT)

    def _flags(self, shards: str, output: str) -> list[str]:
        return [
            *("--config", str(self._recipe), "--output", output, "--input", shards),
            *("--set", "selection.max_evaluation_similarity=null"),
            *("--set", "shards_per_lot=100"),
        ]

    def fill(self) -> None:
        """Puts everything into the store that a finished run has there."""
        with self._without_latency():
            run = open_run(["curate", *self._flags_of_run])
            for kind in _KINDS:
                self._store.put(self._template.objects(kind, run))
            run.write_plan()
            run_record.write(run, run.root)
            for stage in STAGES:
                for folder in running.summarized_folders(stage, run):
                    Summaries.read(folder).write_cache()

    @contextlib.contextmanager
    def _without_latency(self) -> Iterator[None]:
        self._store.set_latency(0)
        yield
        self._store.set_latency(self._latency_s)
        self._store.take_counts()

    def add_shards(self, n: int) -> None:
        """Puts new shards behind those that are there."""
        names = (f"crawl/{_BEHIND}-{time.time_ns()}-{i:05d}.tar" for i in range(n))
        self._store.put(dict.fromkeys(names, b"x"))

    def measure(self, what: str, command: str) -> None:
        """Runs a command and prints a line of what it took."""
        words = ["benchmarks.launcher", command, *self._flags_of_run]
        if command == "status":  # which does without Beam
            words = ["pipeline.run", "status", "--output", OUTPUT]
        start_s, waited_s = time.monotonic(), 0.0
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_JOB):
                job_s = time.monotonic()
                self._do_job(line.removeprefix(_JOB).strip())
                process.stdin.write("\n")
                process.stdin.flush()
                waited_s += time.monotonic() - job_s
            else:
                print("   ", line, end="", file=sys.stderr)
        _, code, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start_s - waited_s
        counts = self._store.take_counts()
        print(
            f"| {what} | {seconds:.1f} | {used.ru_utime + used.ru_stime:.1f} |"
            f" {counts.total():,} | {used.ru_maxrss / 1024:,.0f} |"
            + (f" exit code {os.waitstatus_to_exitcode(code)}" if code else ""),
            flush=True,
        )
        for (operation, folder), n in counts.most_common(_N_FOLDERS):
            print(f"    {n:,} {operation} {folder}", file=sys.stderr)

    def _do_job(self, stage: str) -> None:
        """Writes what the workers of a stage would."""
        counts = self._store.take_counts()
        with self._without_latency():
            run = open_run(["curate", *self._flags_of_run])
            made = _STAGE_TO_KINDS.get(stage, ())
            for kind in made:
                self._store.put(self._template.objects(kind, run))
            self._store.add_counts(counts)


def _command(command: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.run", command, *flags]


class _NoJob:
    """The result of a job that others have done."""

    state = "DONE"

    def wait_until_finish(self) -> None:
        """Nothing is left to wait for."""

    def metrics(self) -> Any:
        """Without counters."""
        return mock.Mock(query=lambda _: {"counters": []})


def _run_without_jobs(command: str, flags: Sequence[str]) -> None:
    """Runs a command that says which job it starts, and waits until it is done."""
    run_stage = curate.run_stage

    def note(run, lots, stage, transform, options):
        def do_job(pipeline: Any) -> _NoJob:
            print(f"{_JOB}{stage}", flush=True)
            sys.stdin.readline()
            return _NoJob()

        with mock.patch.object(beam.Pipeline, "run", do_job):
            return run_stage(run, lots, stage, transform, options)

    with mock.patch.object(curate, "run_stage", note):
        run_command([command, *flags])


def main() -> None:
    if sys.argv[1:2] == ["curate"]:
        _run_without_jobs(sys.argv[1], sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=60)
    args = parser.parse_args()
    latency_s = args.latency_ms / 1000
    with (
        tempfile.TemporaryDirectory(prefix="launcher-") as scratch,
        simulated_store.start(
            Numbered("crawl", args.shards), latency_s=latency_s
        ) as store,
    ):
        os.environ.update(store.environment())
        object_clients.forget_clients()
        simulation = Simulation(store, Path(scratch), latency_s)
        start_s = time.monotonic()
        simulation.fill()
        print(
            f"filled in {time.monotonic() - start_s:.0f} s", file=sys.stderr, flush=True
        )
        print(
            "| | s | CPU s | requests | peak MiB |\n|---|---|---|---|---|", flush=True
        )
        simulation.measure("status", "status")
        simulation.measure("curate, nothing to do", "curate")
        for n in _GROWTHS:
            simulation.add_shards(n)
            simulation.measure(f"curate, {n} more shards", "curate")


if __name__ == "__main__":
    main()
