"""What engines say of jobs, and what is said when they say nothing."""

import dataclasses
import enum
import json
import re
import socket
import sys
import time
import types
from collections.abc import Mapping

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability import portable_runner
from apache_beam.runners.portability.flink_uber_jar_job_server import (
    FlinkUberJarJobServer,
)
from apache_beam.runners.portability.spark_uber_jar_job_server import (
    SparkUberJarJobServer,
)
from apache_beam.runners.runner import PipelineResult

from pipeline import run
from pipeline.commands import attach
from pipeline.config.fingerprint import FORMAT_VERSION
from pipeline.engine import engines, jobs, run_lock, stage_runner, started_jobs
from pipeline.engine.jobs import EngineError, Job
from pipeline.engine.run_folder import CONFIG_NAME
from tests.support import job_service, quick_http
from tests.support.local_server import LocalServer
from tests.support.server_processes import free_port


def job(api: str, place: str, job_id: str = "j1", **fields) -> Job:
    rest = {"host": socket.gethostname(), "is_own_service": False, "started_s": 0.0}
    return Job("score", "SomeRunner", api, place, job_id, **rest | fields)


# Job services over gRPC


def test_a_service_that_does_not_know_a_job_says_so():
    with job_service.running() as (_, endpoint):
        place = endpoint.partition("=")[2]
        assert engines.state_of(job("portable", place)) == jobs.NOT_KNOWN


def test_a_service_that_is_gone_gives_no_answer_unless_it_was_the_launchers_own():
    place = f"localhost:{free_port()}"
    with pytest.raises(EngineError, match=f"{place} gave no answer"):
        engines.state_of(job("portable", place))
    own = job("portable", place, is_own_service=True)
    assert engines.state_of(own) == jobs.NOT_KNOWN


def test_another_job_that_has_its_id_is_not_taken_for_a_job():
    with job_service.running() as flags:
        flags = (*flags, "--environment_type=LOOPBACK")
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        _ = pipeline | beam.Create([1])
        result = pipeline.run()
        result.wait_until_finish()
        found = engines.with_pipeline(started(result, *flags))
        assert engines.state_of(found) == "DONE"
        again = dataclasses.replace(found, pipeline="0123456789ab")
        assert engines.state_of(again) == jobs.NOT_KNOWN
        unknown = dataclasses.replace(found, pipeline="")
        assert engines.state_of(unknown) == "DONE"


def test_a_service_of_another_machine_is_not_looked_for_on_this_one():
    with pytest.raises(EngineError, match="is on elsewhere: expected this command th"):
        engines.state_of(job("portable", "localhost:1", host="elsewhere"))


def test_an_api_of_another_version_is_named():
    with pytest.raises(EngineError, match="api='samza' of a job: expected portable or"):
        engines.state_of(job("samza", "host:1"))


# Clusters over HTTP


@dataclasses.dataclass
class Cluster:
    """Answers by path, as a cluster would, and what was asked."""

    path_to_answer: dict[str, object]
    asked: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, method: str, target: str, headers: Mapping, body: bytes):
        self.asked.append(f"{method} {target}")
        if target not in self.path_to_answer:
            return quick_http.Reply(404, b"{}")
        return quick_http.Reply(200, json.dumps(self.path_to_answer[target]).encode())


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("INITIALIZING", "STARTING"),
        ("RUNNING", "RUNNING"),
        ("RESTARTING", "RUNNING"),
        ("SUSPENDED", "RUNNING"),
        ("CANCELLING", "RUNNING"),
        ("CANCELED", "CANCELLED"),
        ("FAILED", "FAILED"),
        ("FINISHED", "DONE"),
    ],
)
def test_states_of_flink_are_those_of_beam(state, expected):
    cluster = Cluster({"/v1/jobs/j1": {"state": state}})
    with LocalServer(quick_http.make_handler(cluster)) as server:
        assert engines.state_of(job("flink", server.url)) == expected


def test_a_job_of_flink_is_found_by_its_name_and_cancelled():
    listed = [{"jid": "a", "name": "other"}, {"jid": "b", "name": "mine"}]
    cluster = Cluster(
        {
            "/v1/jobs/overview": {"jobs": listed},
            "/v1/jobs/b": {"state": "FAILED"},
            "/v1/jobs/b?mode=cancel": {},
            "/v1/jobs/b/exceptions": {"root-exception": "no disk\n\tat a.b.C"},
        }
    )
    with LocalServer(quick_http.make_handler(cluster)) as server:
        engine = engines.engine_of(
            job("flink", server.url, "mine", is_own_service=True)
        )
        assert engine.state() == "FAILED"
        assert engine.error() == "no disk"
        assert engine.counters("score") is None
        engine.cancel()
        other = job("flink", server.url, "gone", is_own_service=True)
        assert engines.state_of(other) == jobs.NOT_KNOWN
    assert "PATCH /v1/jobs/b?mode=cancel" in cluster.asked


def test_counters_of_flink_are_summed_over_steps():
    def info(name: str, label: str) -> dict:
        labels = {"NAMESPACE": "score", "NAME": "pairs", "PTRANSFORM": label}
        urn = "beam:metric:user:sum_int64:v1"
        return {
            "urn": urn,
            "type": "beam:metrics:sum_int64:v1",
            "payload": "BQ==",  # 5
            "labels": labels,
        }

    metrics = json.dumps({"metrics": {"attempted": [info("pairs", s) for s in "ab"]}})
    found = [{"name": "__metricscontainers", "value": metrics}]
    cluster = Cluster({"/v1/jobs/j1/accumulators": {"user-task-accumulators": found}})
    with LocalServer(quick_http.make_handler(cluster)) as server:
        engine = engines.engine_of(job("flink", server.url))
        assert engine.counters("score") == {"pairs": 10}


def test_states_of_spark_are_those_of_beam():
    status = "/v1/submissions/status/j1"
    cluster = Cluster({status: {"driverState": "RELAUNCHING"}})
    cluster.path_to_answer["/v1/submissions/kill/j1"] = {}
    with LocalServer(quick_http.make_handler(cluster)) as server:
        engine = engines.engine_of(job("spark", server.url))
        assert engine.state() == "RUNNING"
        engine.cancel()
        cluster.path_to_answer[status] = {"driverState": "KILLED", "message": "by you"}
        assert (engine.state(), engine.error()) == ("CANCELLED", "by you")
        assert engine.counters("score") is None
        del cluster.path_to_answer[status]
        assert engine.state() == jobs.NOT_KNOWN
    assert "POST /v1/submissions/kill/j1" in cluster.asked


def test_a_cluster_that_does_not_answer_is_named():
    place = f"http://localhost:{free_port()}"
    with pytest.raises(EngineError, match=f"{place} gave no answer"):
        engines.state_of(job("flink", place))


# Dataflow


class CloudError(Exception):
    pass


class NotFoundError(CloudError):
    pass


class JobState(enum.Enum):
    JOB_STATE_RUNNING = 1
    JOB_STATE_CANCELLED = 2


@pytest.fixture
def dataflow(monkeypatch) -> dict[str, object]:
    """The client of Dataflow over a dict: job id to state, or an error."""
    id_to_state: dict[str, object] = {}

    class Client:
        def get_job(self, request, timeout):
            found = id_to_state.get(request.job_id, NotFoundError("no such job"))
            if isinstance(found, Exception):
                raise found
            return types.SimpleNamespace(current_state=found)

        def update_job(self, request, timeout):
            assert (request.project_id, request.location) == ("p", "europe-west4")
            id_to_state[request.job_id] = request.job.requested_state

    module = types.SimpleNamespace(
        JobsV1Beta3Client=Client,
        JobState=JobState,
        **dict.fromkeys(
            ("GetJobRequest", "UpdateJobRequest", "Job"), types.SimpleNamespace
        ),
    )
    errors = types.SimpleNamespace(NotFound=NotFoundError, GoogleAPIError=CloudError)
    monkeypatch.setitem(sys.modules, "google.cloud", types.ModuleType("google.cloud"))
    monkeypatch.setattr(sys.modules["google.cloud"], "dataflow", module, raising=False)
    api_core = types.ModuleType("google.api_core")
    api_core.exceptions = errors
    monkeypatch.setitem(sys.modules, "google.api_core", api_core)
    return id_to_state


def test_a_job_of_dataflow_is_asked_for_and_cancelled(dataflow):
    dataflow["j1"] = JobState.JOB_STATE_RUNNING
    engine = engines.engine_of(job("dataflow", "p/europe-west4"))
    assert engine.state() == "RUNNING"
    engine.cancel()
    assert engine.state() == "CANCELLED"
    assert engine.error() == ""
    assert engine.counters("score") is None
    assert engines.state_of(job("dataflow", "p/r", "j2")) == jobs.NOT_KNOWN
    dataflow["j1"] = CloudError("503 try later")
    with pytest.raises(EngineError, match=r"p/r gave no answer \(503 try later\)"):
        engines.state_of(job("dataflow", "p/r"))


def test_without_its_client_dataflow_cannot_be_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.api_core", None)
    with pytest.raises(EngineError, match=r"p/r: expected the extra \[gcp\]"):
        engines.state_of(job("dataflow", "p/r"))


# A job that fails


def _raise(_):
    raise ValueError("no ink\nis left")


def test_a_failed_job_ends_in_one_line_with_its_state_and_where_to_look(tmp_path):
    with job_service.running() as flags, job_service.environment_of_workers():
        options = PipelineOptions([*flags, "--environment_type=LOOPBACK"])
        failing = beam.Create([1]) | beam.Map(_raise)
        with run_lock.acquire(str(tmp_path), "score") as held:
            with pytest.raises(EngineError) as raised:
                stage_runner.run_job(str(tmp_path), "score", failing, options)
            assert held.job is None
    place = flags[1].partition("=")[2]
    assert re.fullmatch(
        rf"job \S+ of score \(PortableRunner at {place}, started .*\) is FAILED:"
        rf" .*is left.*; see the logs of the job service at {place} and of its workers",
        str(raised.value),
    )


def test_a_failed_job_of_dataflow_ends_in_one_line_too(tmp_path, monkeypatch):
    failure = type("DataflowRuntimeException", (Exception,), {})

    class DataflowPipelineResult(PipelineResult):
        def job_id(self):
            return "2026-11-30_1"

    here = sys.modules[__name__]
    monkeypatch.setattr(here, failure.__name__, failure, raising=False)
    monkeypatch.setattr(engines, "state_of", lambda job: "FAILED")
    monkeypatch.setattr(engines, "with_pipeline", lambda job: job)
    flags = ("--runner=DataflowRunner", "--project=p", "--region=europe-west4")
    named = started_jobs.named_in_lock(
        *(str(tmp_path), "score"),
        *(DataflowPipelineResult("RUNNING"), PipelineOptions(flags)),
    )
    page = "https://console.cloud.google.com/dataflow/jobs/europe-west4/2026-11-30_1"
    with (
        run_lock.acquire(str(tmp_path), "score"),
        pytest.raises(EngineError, match="is FAILED: no ink; see ") as raised,
        named,
    ):
        raise failure("State: FAILED, Error:\nTraceback\nno ink")
    assert str(raised.value).endswith(f"see {page}?project=p")


# Which job a result is of


def portable(service: object, job_id: str = "j1") -> PipelineResult:
    return portable_runner.PipelineResult(service, job_id, None, None)


def started(result: PipelineResult, *flags: str) -> Job | None:
    return started_jobs.job_of("score", result, PipelineOptions(flags))


def test_a_job_of_a_service_is_known_by_its_endpoint():
    found = started(portable(None), "--runner=PortableRunner", "--job_endpoint=h:8099")
    assert (found.api, found.place, found.job_id) == ("portable", "h:8099", "j1")
    assert found.host == socket.gethostname()
    assert not found.is_own_service
    assert Job.of(dataclasses.asdict(found)) == found


def test_threads_of_this_process_are_no_job():
    assert started(PipelineResult("DONE"), "--runner=DirectRunner") is None
    assert started(portable(None), "--job_endpoint=embed") is None


def test_a_job_service_that_beam_started_is_known_by_its_channel():
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2_grpc

    channel = grpc.insecure_channel("localhost:4711")
    service = beam_job_api_pb2_grpc.JobServiceStub(channel)
    found = started(portable(service), "--runner=PrismRunner")
    assert (found.api, found.place) == ("portable", "localhost:4711")
    assert found.is_own_service
    local = started(portable(service), "--runner=FlinkRunner", "--flink_master=[local]")
    assert (local.api, local.place) == ("portable", "localhost:4711")


def test_a_job_on_a_cluster_of_flink_is_known_by_its_name():
    flags = ("--runner=FlinkRunner", "--flink_master=manager:8081")
    found = started(portable(None, "beamapp-me-1130_5f3c"), *flags)
    assert (found.api, found.place) == ("flink", "http://manager:8081")
    assert found.job_id == "beamapp-me-1130"
    assert found.is_own_service


def test_jobs_of_clusters_that_took_a_jar_are_known_by_the_clusters_own_id():
    flink, spark = (
        cls.__new__(cls) for cls in (FlinkUberJarJobServer, SparkUberJarJobServer)
    )
    flink._master_url, spark._rest_url = "http://flink", "http://spark"
    flink._jobs = {"j1": types.SimpleNamespace(_flink_job_id="f1")}
    spark._jobs = {"j1": types.SimpleNamespace(_spark_submission_id="s1")}
    for service, expected in ((flink, ("flink", "f1")), (spark, ("spark", "s1"))):
        found = started(portable(service), "--runner=SomeRunner")
        assert (found.api, found.job_id) == expected
        assert found.place == f"http://{found.api}"


def test_a_job_of_dataflow_is_known_by_its_project_and_region():
    class DataflowPipelineResult(PipelineResult):
        def job_id(self):
            return "2026-11-30_1"

    flags = ("--runner=DataflowRunner", "--project=p", "--region=europe-west4")
    found = started(DataflowPipelineResult("RUNNING"), *flags)
    assert (found.api, found.place) == ("dataflow", "p/europe-west4")
    assert found.job_id == "2026-11-30_1"


# A job that a lock names


@pytest.fixture
def left(tmp_path):
    """Leaves a lock with a job as a launcher does that was killed on another host."""

    def leave(left_job: Job) -> str:
        past_s = time.time() - 1000
        holder = run_lock.Holder("elsewhere", 1, "curate", past_s, past_s, left_job)
        (tmp_path / run_lock.NAME).write_bytes(run_lock._to_json(holder))
        config = json.dumps({"format_version": FORMAT_VERSION})
        (tmp_path / CONFIG_NAME).write_text(config)
        return str(tmp_path)

    return leave


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.01)


def test_a_lock_whose_job_is_over_is_taken_over(left, capsys):
    with job_service.running() as (_, endpoint):
        folder = left(job("portable", endpoint.partition("=")[2]))
        with run_lock.acquire(folder, "curate") as held:
            assert held.job is None
    assert "(SomeRunner at localhost:" in capsys.readouterr().err


def test_a_lock_whose_job_cannot_be_asked_for_is_kept_until_it_is_forgotten(
    left, capsys
):
    folder = left(job("portable", f"localhost:{free_port()}"))
    with pytest.raises(run_lock.LockedError, match=r"certain that .* gone, --forget"):
        run_lock.acquire(folder, "curate")
    with pytest.raises(SystemExit) as stopped:
        run.main(["attach", "--output", folder])
    assert stopped.value.code == 1
    assert "gave no answer" in capsys.readouterr().err
    assert run_lock.named_job(folder)
    run.main(["attach", "--output", folder, "--forget"])
    assert "forgotten: job j1 of score" in capsys.readouterr().out
    with run_lock.acquire(folder, "curate"):
        pass


def test_attach_to_a_job_that_its_engine_does_not_know_is_over(left, capsys):
    own = job("portable", f"localhost:{free_port()}", is_own_service=True)
    run.main(["attach", "--output", left(own)])
    assert "is not known to its engine: the same command" in capsys.readouterr().out


def test_cancel_and_forget_exclude_each_other(tmp_path, capsys):
    words = ["attach", "--output", str(tmp_path), "--cancel", "--forget"]
    with pytest.raises(SystemExit) as stopped:
        run.main(words)
    assert stopped.value.code == 2
    assert "--forget: expected it without --cancel" in capsys.readouterr().err


def test_a_job_that_is_named_stays_in_the_lock_while_it_is_renewed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_lock, "_RENEWAL_S", 0.01)
    folder, named = str(tmp_path), job("portable", "localhost:1")
    with run_lock.acquire(folder, "curate"):
        run_lock.name_job(folder, named)
        time.sleep(0.1)
        assert run_lock.named_job(folder) == named
        run_lock.name_job(folder, None)
        assert run_lock.named_job(folder) is None
    assert list(tmp_path.iterdir()) == []
    run_lock.name_job(folder, named)  # without the lock
    assert list(tmp_path.iterdir()) == []


# Patience with engines


class Engine:
    """Says the states of a list, one at each question; an error is raised."""

    def __init__(self, *answers: str | EngineError) -> None:
        self._answers = iter(answers)

    def state(self) -> str:
        answer = next(self._answers)
        if isinstance(answer, EngineError):
            raise answer
        return answer


@pytest.fixture
def asked_at_once(monkeypatch):
    monkeypatch.setattr(attach, "_PAUSE_S", 0.0)


def test_an_engine_that_is_silent_for_a_while_is_asked_again(asked_at_once):
    engine = Engine("RUNNING", EngineError("busy"), EngineError("busy"), "DONE")
    assert attach._wait(job("portable", "h:1"), engine, "STARTING") == "DONE"


def test_an_engine_that_stays_silent_ends_attach(asked_at_once, monkeypatch):
    monkeypatch.setattr(attach, "_PATIENCE_S", 0.0)
    engine = Engine("RUNNING", EngineError("h:1 gave no answer"))
    with pytest.raises(EngineError, match=r"job j1 of score .*: h:1 gave no answer"):
        attach._wait(job("portable", "h:1"), engine, "RUNNING")
