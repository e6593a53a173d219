"""Measures what the launcher does for a run of a million shards on a store.

    python -m benchmarks.launcher [--shards 1000000] [--growths 1 10 100]

The store is that of the tests: its shards are numbered, an answer takes so long, and
requests are counted. It is a Python process of this machine: what it takes of the
processors is in the last column. One lot is made for real, on a local disk, and its
tables and training shards stand for those of all lots. Then come commands with nothing
to do, and `curate` after some more shards, whose jobs are not run: when one is
started, its tables are put into the store as workers would write them. What is left is
the launcher's work. Prints a table of seconds, seconds of processors, requests and peak
memory; what each command asked for most is on standard error.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.storage import object_clients
from tests.support import simulated_run, simulated_store
from tests.support.launcher_command import JOB, PEAK
from tests.support.simulated_run import CRAWL, OUTPUT, SimulatedRun
from tests.support.simulated_store import Numbered, SimulatedStore

_SHARDS_PER_LOT = 100
_N_FOLDERS = 12  # that a line names


def measure(store: SimulatedStore, run: SimulatedRun, what: str, command: str) -> None:
    """Runs a command and prints a line of what it took."""
    flags = ["--output", OUTPUT] if command == "status" else run.flags
    words = ["-m", "tests.support.launcher_command", command, *flags]
    start_s, waited_s, peak = time.monotonic(), 0.0, "0"
    store_s = store.processor_seconds()
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(JOB):
            job_s, store_job_s = time.monotonic(), store.processor_seconds()
            run.do_job(line.removeprefix(JOB).strip())
            process.stdin.write("\n")
            process.stdin.flush()
            waited_s += time.monotonic() - job_s
            store_s += store.processor_seconds() - store_job_s
        elif line.startswith(PEAK):
            peak = line.removeprefix(PEAK)
        else:
            print("   ", line, end="", file=sys.stderr)
    _, code, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start_s - waited_s
    store_s = store.processor_seconds() - store_s
    counts = store.take_counts()
    print(
        f"| {what} | {seconds:.1f} | {used.ru_utime + used.ru_stime:.1f} |"
        f" {counts.total():,} | {int(peak) / 1024:,.0f} | {store_s:.1f} |"
        + (f" exit code {os.waitstatus_to_exitcode(code)}" if code else ""),
        flush=True,
    )
    for (operation, folder), n in counts.most_common(_N_FOLDERS):
        print(f"    {n:,} {operation} {folder}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--latency-ms", type=float, default=60)
    parser.add_argument("--growths", type=int, nargs="*", default=(1, 10, 100))
    args = parser.parse_args()
    latency_s = args.latency_ms / 1000
    with (
        tempfile.TemporaryDirectory(prefix="launcher-") as scratch,
        simulated_store.start(
            Numbered(CRAWL, args.shards), latency_s=latency_s
        ) as store,
    ):
        os.environ.update(store.environment())
        object_clients.forget_clients()
        start_s = time.monotonic()
        template = simulated_run.make_template(Path(scratch))
        run = SimulatedRun(store, Path(scratch), template, _SHARDS_PER_LOT)
        run.fill()
        print(
            f"filled in {time.monotonic() - start_s:.0f} s", file=sys.stderr, flush=True
        )
        print(
            "| | s | CPU s | requests | peak MiB | CPU s of the store |\n"
            "|---|---|---|---|---|---|",
            flush=True,
        )
        measure(store, run, "status", "status")
        measure(store, run, "curate, nothing to do", "curate")
        measure(store, run, "export, nothing to do", "export")
        for n in args.growths:
            run.add_shards(n)
            measure(store, run, f"curate, {n} more shards", "curate")


if __name__ == "__main__":
    main()
