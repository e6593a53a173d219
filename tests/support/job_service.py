"""Beam's own job services on ports of this machine: in Python, and Prism."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.runners.portability.local_job_service import LocalJobServicer

from tests.support.object_servers import ENGINES
from tests.support.server_processes import ServerProcess, free_port

ROOT = Path(__file__).parents[2]
# Flags of workers that the service starts as processes of this machine.
SUBPROCESSES = (
    "--environment_type=beam:env:harness_subprocess_python:v1",
    f"--environment_config={sys.executable} -m"
    " apache_beam.runners.worker.sdk_worker_main",
)
_PRISM = ENGINES / "prism"


@contextlib.contextmanager
def running() -> Iterator[tuple[str, str]]:
    """Flags that send jobs there over gRPC; the caller names the workers."""
    service = LocalJobServicer()
    port = service.start_grpc_server()
    try:
        yield _flags(port)
    finally:
        service.stop()


@contextlib.contextmanager
def prism(folder: Path) -> Iterator[tuple[str, ...]]:
    """Flags that send jobs to a Prism, with workers of a pool beside it.

    The test is skipped if there is no Prism. `folder` is for logs.
    """
    if not _PRISM.is_file():
        pytest.skip(f"{_PRISM}: expected `make .engines/installed`")
    ports = free_port(), free_port()
    pool = "apache_beam.runners.worker.worker_pool_main"
    commands = (
        (str(_PRISM), f"--job_port={ports[0]}", "--serve_http=false"),
        (sys.executable, "-m", pool, f"--service_port={ports[1]}"),
    )
    with contextlib.ExitStack() as stack:
        for command, port in zip(commands, ports, strict=True):
            server = ServerProcess(command, port, folder / f"{port}.log")
            stack.callback(server.stop)
            server.start()
        workers = ("EXTERNAL", f"--environment_config=localhost:{ports[1]}")
        yield *_flags(ports[0]), "--environment_type", *workers


@contextlib.contextmanager
def environment_of_workers() -> Iterator[None]:
    """Lets workers that are started import the tests, and pools find our Python."""
    bin_folder = str(Path(sys.executable).parent)
    path = os.pathsep.join((bin_folder, os.environ["PATH"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PATH", path)
        yield


def _flags(port: int) -> tuple[str, str]:
    return "--runner=PortableRunner", f"--job_endpoint=localhost:{port}"
