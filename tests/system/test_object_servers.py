"""The servers of other tests: who may do what, stopping, and what is listed."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support import object_servers
from tests.support.object_servers import Server, list_objects, open_uploads
from tests.support.signed_requests import send

pytestmark = pytest.mark.cloud

START = {
    "s3": object_servers.start_s3,
    "gs": object_servers.start_gcs,
    "az": object_servers.start_azure,
}


@pytest.fixture(scope="module", params=START)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with START[request.param]() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with object_servers.start_s3() as server:
        yield server


def test_objects_are_listed_and_outlive_a_stop(server):
    put(server, "a/b c")
    put(server, "d")
    port = server.process.port
    server.stop()
    assert not listens(port)
    server.start()
    assert list_objects(server) == {"a/b c": 5, "d": 5}
    assert list_objects(server, "a/") == {"a/b c": 5}


def test_uploads_that_are_not_completed_are_listed(server):
    assert open_uploads(server) == []
    if server.scheme == "az":
        block = {"comp": "block", "blockid": "MDAw"}
        send(server.environment, "PUT", f"{server.url}/bucket/big", block, b"x")
    else:
        send(server.environment, "POST", f"{server.url}/bucket/big", {"uploads": ""})
    assert open_uploads(server) == ["big"]
    assert "big" not in list_objects(server)


ALLOWED = {
    "reader": {"get", "list"},
    "writer": {"put"},
    "not_lister": {"get", "put", "delete"},
    "anonymous": set(),
}


@pytest.mark.parametrize("user", ALLOWED)
def test_a_user_of_s3_may_do_what_its_name_says(s3, user):
    put(s3, "a")
    assert allowed_to(s3, user, "bucket") == ALLOWED[user]


def test_the_public_bucket_is_readable_without_keys(s3):
    send(s3.environment, "PUT", f"{s3.url}/bucket-public/a", body=b"x")
    assert allowed_to(s3, "anonymous", "bucket-public") == {"get", "list"}


def test_s3_over_tls_needs_its_certificate():
    with object_servers.start_s3(is_tls=True) as server:
        put(server, "a")
        assert list_objects(server) == {"a": 5}
        without = dict(server.environment)
        del without["AWS_CA_BUNDLE"]
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            send(without, "GET", f"{server.url}/bucket/a")


def test_s3_of_another_region_refuses_signatures_of_this_one():
    with object_servers.start_s3(region="eu-west-1") as server:
        here = server.environment | {"AWS_REGION": "us-east-1"}
        with pytest.raises(RuntimeError, match="AuthorizationHeaderMalformed"):
            send(here, "GET", f"{server.url}/bucket/a")


def test_a_server_dies_with_the_process_that_started_it():
    program = (
        "import time\n"
        "from tests.support.object_servers import start_s3\n"
        "with start_s3() as server:\n"
        "    print(server.process.port, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as starter:
        port = int(starter.stdout.readline())
        assert listens(port)
        os.kill(starter.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 5
    while listens(port) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not listens(port)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def put(server: Server, key: str) -> None:
    url = f"{server.url}/bucket/{key.replace(' ', '%20')}"
    send(server.environment, "PUT", url, body=b"12345")


def allowed_to(server: Server, user: str, bucket: str) -> set[str]:
    """Which of four requests the store answers."""
    url = f"{server.url}/{bucket}"
    requests = {
        "get": ("GET", f"{url}/a"),
        "list": ("GET", url),
        "put": ("PUT", f"{url}/of-{user}"),
        "delete": ("DELETE", f"{url}/of-{user}"),
    }
    allowed = set()
    for name, (method, place) in requests.items():
        with contextlib.suppress(RuntimeError):
            send(server.users[user], method, place)
            allowed.add(name)
    return allowed
