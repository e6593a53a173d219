"""Jobs that engines run for a run folder: which one it is, and what is said of it.

In: what a launcher knows of the job that its runner has accepted. Out: a record for the
lock of the run folder, from which any later command finds the job again.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

_TERMINAL = ("DONE", "FAILED", "CANCELLED", "DRAINED", "UPDATED")
NOT_KNOWN = "not known to its engine"


class EngineError(RuntimeError):
    """An engine does not say how a job is; the message has one line."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that a runner has accepted, and where to ask for it."""

    stage: str  # whose counters it has
    runner: str  # as flags name it
    api: str  # that knows the job: portable, flink, spark or dataflow
    place: str  # HOST:PORT of a job service, URL of a cluster, or PROJECT/REGION
    job_id: str  # or the name of a job of Flink, where only the job server knows more
    host: str  # of the launcher, which is what `localhost` in `place` means
    is_own_service: bool  # the launcher started the job service, which may end with it
    started_s: float  # Unix time
    # Digest of the pipeline; "" if it is not known. Services number jobs anew when they
    # are started again.
    pipeline: str = ""

    def __str__(self) -> str:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started_s))
        where = f"{self.runner} at {self.place}"
        return f"job {self.job_id} of {self.stage} ({where}, started {started})"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Job":
        """The job that a lock names.

        Raises:
          KeyError, TypeError, ValueError: on anything else.
        """
        texts = ("stage", "runner", "api", "place", "job_id", "host")
        return cls(
            **{name: str(fields[name]) for name in texts},
            is_own_service=bool(fields["is_own_service"]),
            started_s=float(fields["started_s"]),
            pipeline=str(fields.get("pipeline", "")),
        )


def is_over(state: str) -> bool:
    """Whether a job in that state, as Beam names states, writes no more."""
    return state in (*_TERMINAL, NOT_KNOWN)


def where_to_look(job: Job) -> str:
    """Where the engine of a job shows what became of it."""
    if job.api == "dataflow":
        project, _, region = job.place.partition("/")
        page = "https://console.cloud.google.com/dataflow/jobs"
        return f"see {page}/{region}/{job.job_id}?project={project}"
    if job.api == "portable":
        return f"see the logs of the job service at {job.place} and of its workers"
    return f"see {job.place}"


def how_to_go_on(folder: str) -> str:
    """The commands that go on with a job whose launcher is gone."""
    command = f"python -m pipeline.run attach --output {folder}"
    return f"`{command}` waits for it, and with --cancel ends it"
