"""What engines say of jobs, asked anew: the state, the end, the counters, an error.

In: a `Job` that a lock names. Out: answers of its engine, or an `EngineError` if there
is none. Beam and the clients of clouds are imported when a job is asked for, so that
commands that only look do without.
"""

import dataclasses
import hashlib
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pipeline.engine.jobs import NOT_KNOWN, EngineError, Job
from recipes.validation import one_line

_TIMEOUT_S = 20.0  # of one question
_MAX_CHARS = 200  # of an engine's error
_LOCAL = ("localhost", "127.0.0.1", "[::1]")

_FLINK_STATES = {
    "CREATED": "STARTING",
    "INITIALIZING": "STARTING",
    "FINISHED": "DONE",
    "CANCELED": "CANCELLED",
    "FAILED": "FAILED",
}  # others are of jobs that run, or will again
_SPARK_STATES = {
    "SUBMITTED": "STARTING",
    "FINISHED": "DONE",
    "KILLED": "CANCELLED",
    "FAILED": "FAILED",
    "ERROR": "FAILED",
    "NOT_FOUND": NOT_KNOWN,
}


class Engine(Protocol):
    """The API of an engine, for one job. All methods raise `EngineError`."""

    def state(self) -> str:
        """The state as Beam names it, or `NOT_KNOWN`."""

    def cancel(self) -> None:
        """Asks the engine to end the job, which may take a while."""

    def counters(self, stage: str) -> Mapping[str, int] | None:
        """The counters of a stage; None if the engine does not tell them."""

    def error(self) -> str:
        """The last error of a job that failed; "" if it is not known."""


def engine_of(job: Job) -> Engine:
    """The engine of a job.

    Raises:
      EngineError: if it cannot be asked from here.
    """
    host = job.place.removeprefix("http://").rpartition(":")[0]
    if host in _LOCAL and job.host != socket.gethostname():
        raise EngineError(f"{job.place} is on {job.host}: expected this command there")
    api_to_engine: dict[str, Callable[[Job], Engine]] = {
        "portable": _PortableEngine,
        "flink": _FlinkEngine,
        "spark": _SparkEngine,
        "dataflow": _DataflowEngine,
    }
    if job.api not in api_to_engine:
        expected = " or ".join(api_to_engine)
        raise EngineError(f"api={job.api!r} of a job: expected {expected}")
    return api_to_engine[job.api](job)


def state_of(job: Job) -> str:
    """The state of a job, asked of its engine; raises `EngineError`."""
    return engine_of(job).state()


def with_pipeline(job: Job) -> Job:
    """The job with the digest of its pipeline, if its engine tells that."""
    engine = engine_of(job)
    known = engine.pipeline() if isinstance(engine, _PortableEngine) else ""
    return dataclasses.replace(job, pipeline=known)


def _silent(job: Job, error: object) -> EngineError:
    return EngineError(f"{job.place} gave no answer ({one_line(str(error), 120)})")


class _PortableEngine:
    """A job service of Beam, over gRPC: of Prism, Flink, Spark or one of your own."""

    def __init__(self, job: Job) -> None:
        import grpc
        from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

        self._job, self._failures = job, grpc.RpcError
        self._unreachable = (grpc.StatusCode.UNAVAILABLE,)
        self._messages = beam_job_api_pb2
        channel = grpc.insecure_channel(job.place)
        self._service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        self._is_verified = False

    def state(self) -> str:
        request = self._messages.GetJobStateRequest(job_id=self._job.job_id)
        try:
            found = self._service.GetState(request, timeout=_TIMEOUT_S)
        except self._failures as error:
            return self._state_without_answer(error)
        if not self._is_verified:
            pipelines = {self._job.pipeline, self.pipeline()} - {""}
            if len(pipelines) > 1:
                return NOT_KNOWN  # another job has its id
            self._is_verified = True
        return self._messages.JobState.Enum.Name(found.state)

    def pipeline(self) -> str:
        """A digest of what the job does; "" if the service does not tell."""
        request = self._messages.GetJobPipelineRequest(job_id=self._job.job_id)
        try:
            found = self._service.GetPipeline(request, timeout=_TIMEOUT_S).pipeline
        except self._failures:
            return ""
        digest = hashlib.blake2b(digest_size=6)
        for name, step in sorted(found.components.transforms.items()):
            digest.update(name.encode() + step.spec.payload)
        return digest.hexdigest()

    def _state_without_answer(self, error: Any) -> str:
        """Tells a service without this job from one that is gone or has a fault."""
        if self._job.is_own_service and error.code() in self._unreachable:
            return NOT_KNOWN  # it ended with its launcher, and its jobs with it
        request = self._messages.GetJobsRequest()
        jobs = self._ask(self._service.GetJobs, request).job_info
        if any(info.job_id == self._job.job_id for info in jobs):
            raise _silent(self._job, error.details()) from error
        return NOT_KNOWN

    def cancel(self) -> None:
        request = self._messages.CancelJobRequest(job_id=self._job.job_id)
        self._ask(self._service.Cancel, request)

    def counters(self, stage: str) -> Mapping[str, int] | None:
        request = self._messages.GetJobMetricsRequest(job_id=self._job.job_id)
        return _counters(self._ask(self._service.GetJobMetrics, request), stage)

    def error(self) -> str:
        request = self._messages.JobMessagesRequest(job_id=self._job.job_id)
        is_error = self._messages.JobMessage.JOB_MESSAGE_ERROR
        text = ""
        try:
            for answer in self._service.GetMessageStream(request, timeout=_TIMEOUT_S):
                if answer.message_response.importance == is_error:
                    text = answer.message_response.message_text
        except self._failures:  # some services never end the stream
            pass
        return text

    def _ask(self, method: Callable, request: Any) -> Any:
        try:
            return method(request, timeout=_TIMEOUT_S)
        except self._failures as error:
            raise _silent(self._job, error.details()) from error


class _RestEngine:
    """The HTTP API of a cluster."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._url = job.place.rstrip("/")

    def _ask(self, path: str, method: str = "GET") -> Any:
        """The answer as JSON; None if there is no such thing."""
        import requests  # comes with Beam

        url = f"{self._url}/{path}"
        try:
            answer = requests.request(method, url, timeout=_TIMEOUT_S)
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return answer.json() if answer.content else {}
        except (requests.RequestException, ValueError) as error:
            raise _silent(self._job, error) from error


class _FlinkEngine(_RestEngine):
    """The REST API of a job manager of Flink."""

    def state(self) -> str:
        job_id = self._flink_id()
        found = self._ask(f"v1/jobs/{job_id}") if job_id else None
        if found is None:
            return NOT_KNOWN
        return _FLINK_STATES.get(found["state"], "RUNNING")

    def cancel(self) -> None:
        if job_id := self._flink_id():
            self._ask(f"v1/jobs/{job_id}?mode=cancel", "PATCH")

    def counters(self, stage: str) -> Mapping[str, int] | None:
        from apache_beam.portability.api import beam_job_api_pb2
        from google.protobuf import json_format

        found = self._ask(f"v1/jobs/{self._flink_id()}/accumulators") or {}
        for one in found.get("user-task-accumulators", ()):
            if one["name"] == "__metricscontainers":
                answer = beam_job_api_pb2.GetJobMetricsResponse()
                return _counters(json_format.Parse(one["value"], answer), stage)
        return None

    def error(self) -> str:
        found = self._ask(f"v1/jobs/{self._flink_id()}/exceptions") or {}
        return str(found.get("root-exception") or "").strip().partition("\n")[0]

    def _flink_id(self) -> str | None:
        """The id of the job, which a job server tells by its name alone."""
        if not self._job.is_own_service:
            return self._job.job_id
        found = (self._ask("v1/jobs/overview") or {}).get("jobs", ())
        ids = [one["jid"] for one in found if one["name"] == self._job.job_id]
        return ids[0] if ids else None


class _SparkEngine(_RestEngine):
    """The REST API of a master of Spark."""

    def state(self) -> str:
        found = self._ask(f"v1/submissions/status/{self._job.job_id}") or {}
        return _SPARK_STATES.get(found.get("driverState", "NOT_FOUND"), "RUNNING")

    def cancel(self) -> None:
        self._ask(f"v1/submissions/kill/{self._job.job_id}", "POST")

    def counters(self, stage: str) -> Mapping[str, int] | None:
        return None

    def error(self) -> str:
        found = self._ask(f"v1/submissions/status/{self._job.job_id}") or {}
        return str(found.get("message", ""))


class _DataflowEngine:
    """Dataflow, with the credentials of the environment."""

    def __init__(self, job: Job) -> None:
        try:
            from google.api_core import exceptions
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import dataflow
        except ImportError as error:
            raise EngineError(
                f"{job.place}: expected the extra [gcp] to be installed, to ask"
                f" Dataflow ({error})"
            ) from error
        self._api, self._job = dataflow, job
        self._unknown = exceptions.NotFound
        self._failures = (exceptions.GoogleAPIError, GoogleAuthError)
        project, _, region = job.place.partition("/")
        self._name = {"project_id": project, "location": region, "job_id": job.job_id}

    def state(self) -> str:
        try:
            client = self._api.JobsV1Beta3Client()
            request = self._api.GetJobRequest(**self._name)
            found = client.get_job(request=request, timeout=_TIMEOUT_S)
        except self._unknown:
            return NOT_KNOWN
        except self._failures as error:
            raise _silent(self._job, error) from error
        return found.current_state.name.removeprefix("JOB_STATE_")

    def cancel(self) -> None:
        cancelled = self._api.JobState.JOB_STATE_CANCELLED
        wanted = self._api.Job(requested_state=cancelled)
        request = self._api.UpdateJobRequest(**self._name, job=wanted)
        try:
            client = self._api.JobsV1Beta3Client()
            client.update_job(request=request, timeout=_TIMEOUT_S)
        except self._failures as error:
            raise _silent(self._job, error) from error

    def counters(self, stage: str) -> Mapping[str, int] | None:
        return None  # Dataflow has them, by the names of its own steps

    def error(self) -> str:
        return ""  # its page in the console has it


def _counters(response: Any, stage: str) -> Mapping[str, int]:
    from apache_beam.runners.portability.portable_runner import PortableMetrics

    from pipeline.engine.counters import sum_counters

    return sum_counters(PortableMetrics(response), stage)
