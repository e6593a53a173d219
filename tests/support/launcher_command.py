"""One command of the launcher without its jobs: what `benchmarks.launcher` measures.

    python -m tests.support.launcher_command curate --output RUN ...

In: a command line of `pipeline.run`. Out: its output, a line `job: STAGE` for each job
that it would start, after which it waits for a line that says that the job is done, and
a line `peak: KiB` of its memory at the end.
"""

import atexit
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.arguments import LOOKING
from pipeline.run import main as run_command

JOB, PEAK = "job: ", "peak: "


def main(arguments: Sequence[str]) -> None:
    atexit.register(_say_peak)
    if arguments[0] not in LOOKING:  # which do without Beam
        _leave_out_jobs()
    run_command(arguments)


def _leave_out_jobs() -> None:
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from pipeline.engine import stage_runner
    from pipeline.storage import remembered_listings

    def run_job(root: str, stage: str, transform: Any, options: Any) -> dict[str, int]:
        _ = beam.Pipeline(FnApiRunner(), options=options) | transform
        with remembered_listings.not_kept():
            print(f"{JOB}{stage}", flush=True)
            sys.stdin.readline()
        return {}

    stage_runner.run_job = run_job


def _say_peak() -> None:
    # What a parent used is no part of it, unlike in `getrusage`.
    (peak,) = re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    print(f"{PEAK}{peak}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
