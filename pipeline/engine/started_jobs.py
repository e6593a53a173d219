"""Names the job that a runner has accepted in the lock of the run folder.

In: what Beam's `run` returns. Out: a `Job`, with all that another process needs to find
it again. Runners that work in this process have none.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.portability import flink_uber_jar_job_server as flink
from apache_beam.runners.portability import portable_runner
from apache_beam.runners.portability import spark_uber_jar_job_server as spark
from apache_beam.runners.runner import PipelineResult

from pipeline.engine import engines, jobs, run_lock
from pipeline.engine.jobs import EngineError, Job


@contextlib.contextmanager
def named_in_lock(
    root: str, stage: str, result: PipelineResult, options: PipelineOptions
) -> Iterator[None]:
    """Makes the lock name the job inside the block, and after it if it is not over.

    Raises:
      EngineError: of a job that failed or was cancelled: one line with its state, the
        last line of its error, and where to look.
    """
    job = job_of(stage, result, options)
    if job is None:
        yield
        return
    run_lock.name_job(root, job)
    run_lock.name_job(root, engines.with_pipeline(job))
    try:
        yield
    except grpc.RpcError as error:
        raise EngineError(f"{job}: {error.details()}") from error
    except (RuntimeError, _own_error(result)) as error:
        reason = str(error).strip().rpartition("\n")[2]
        where = jobs.where_to_look(job)
        raise EngineError(f"{job} is {_ask_state(job)}: {reason}; {where}") from error
    finally:
        with contextlib.suppress(EngineError):
            if jobs.is_over(engines.state_of(job)):
                run_lock.name_job(root, None)


def _ask_state(job: Job) -> str:
    try:
        return engines.state_of(job)
    except EngineError:
        return "in a state that its engine does not tell"


def _own_error(result: PipelineResult) -> type[Exception]:
    """What a result of Dataflow raises of a job that failed."""
    module = sys.modules[type(result).__module__]
    return getattr(module, "DataflowRuntimeException", RuntimeError)


def job_of(stage: str, result: PipelineResult, options: PipelineOptions) -> Job | None:
    """The job of a result; None if it is no more than threads of this process."""
    place = _place_of(result, options)
    if place is None:
        return None
    api, where, job_id, is_own_service = place
    return Job(
        stage=stage,
        runner=options.view_as(StandardOptions).runner,
        api=api,
        place=where,
        job_id=job_id,
        host=socket.gethostname(),
        is_own_service=is_own_service,
        started_s=time.time(),
    )


def _place_of(
    result: PipelineResult, options: PipelineOptions
) -> tuple[str, str, str, bool] | None:
    """The API that knows the job, where it is, the id, and whether we started it."""
    if isinstance(result, portable_runner.PipelineResult):
        return _place_of_portable(result._job_service, result._job_id, options)
    # Dataflow's results are of a module that needs the extra [gcp].
    if type(result).__name__ == "DataflowPipelineResult":
        cloud = options.view_as(GoogleCloudOptions)
        return "dataflow", f"{cloud.project}/{cloud.region}", result.job_id(), False
    return None


def _place_of_portable(
    service: Any, job_id: str, options: PipelineOptions
) -> tuple[str, str, str, bool] | None:
    if isinstance(service, flink.FlinkUberJarJobServer):
        return "flink", service._master_url, service._jobs[job_id]._flink_job_id, False
    if isinstance(service, spark.SparkUberJarJobServer):
        submission_id = service._jobs[job_id]._spark_submission_id
        return "spark", service._rest_url, submission_id, False
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint == "embed":
        return None
    if endpoint:
        return "portable", endpoint, job_id, False
    if cluster := _flink_cluster(options):
        # Its job server ends with the launcher, but the job does not. The cluster
        # knows it by its name, with which the id begins.
        return "flink", cluster, job_id.rpartition("_")[0], True
    return "portable", _address_of(service), job_id, True


def _flink_cluster(options: PipelineOptions) -> str:
    """The address of the job manager; "" of a Flink in the job server, or no Flink."""
    name = options.view_as(StandardOptions).runner or ""
    master = options.view_as(FlinkRunnerOptions).flink_master or ""
    is_cluster = "flink" in name.lower() and not master.startswith("[")
    if not is_cluster or not master:
        return ""
    return master if "://" in master else f"http://{master}"


def _address_of(service: Any) -> str:
    """HOST:PORT of a job service that Beam started, which it does not tell."""
    target = service.GetState._channel.target().decode()
    return target.rpartition("/")[2]
