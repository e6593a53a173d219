"""Beam's own job service, pure Python, on a port of this machine."""

import contextlib
from collections.abc import Iterator

from apache_beam.runners.portability.local_job_service import LocalJobServicer


@contextlib.contextmanager
def running() -> Iterator[tuple[str, str]]:
    """Flags that send jobs there over gRPC; the caller names the workers."""
    service = LocalJobServicer()
    port = service.start_grpc_server()
    try:
        yield "--runner=PortableRunner", f"--job_endpoint=localhost:{port}"
    finally:
        service.stop()
