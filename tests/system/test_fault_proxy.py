"""The proxy of other tests: what it counts, and what a client sees of its faults."""

import http.client
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.support import object_servers
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import IN_BODY, Fault
from tests.support.object_servers import Server
from tests.support.signed_requests import send

pytestmark = pytest.mark.cloud
obstore = pytest.importorskip("obstore")

BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    start = {
        "s3": object_servers.start_s3,
        "gs": object_servers.start_gcs,
        "az": object_servers.start_azure,
    }
    with start[request.param]() as server:
        send(server.environment, "PUT", f"{server.url}/bucket/in/key", body=BODY)
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        yield proxy


def store_of(environment: dict[str, str], n_retries: int = 0) -> object:
    """A client of obstore."""
    options = {
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": n_retries},
    }
    if "AWS_REGION" in environment:
        return obstore.store.S3Store(
            "bucket",
            endpoint=environment["AWS_ENDPOINT_URL"],
            access_key_id=environment["AWS_ACCESS_KEY_ID"],
            secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            **options,
        )
    if "STORAGE_EMULATOR_HOST" in environment:
        token = {"token": "emulator", "expires_at": None}
        return obstore.store.GCSStore(
            "bucket",
            base_url=environment["STORAGE_EMULATOR_HOST"],
            credential_provider=lambda: token,
            **options,
        )
    text = environment["AZURE_STORAGE_CONNECTION_STRING"]
    account = dict(part.split("=", 1) for part in text.split(";") if part)
    return obstore.store.AzureStore(
        "bucket",
        account_name=account["AccountName"],
        account_key=account["AccountKey"],
        endpoint=account["BlobEndpoint"],
        **options,
    )


def answer(proxy: FaultProxy, method: str = "GET", path: str = "/bucket/in/key"):
    """Status, headers and body as they come, without retries."""
    url = urllib.parse.urlsplit(proxy.url)
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    connection.request(method, url.path + path)
    found = connection.getresponse()
    return found.status, found.headers, found.read()


def test_requests_are_counted_by_operation_and_key(proxy, server):
    store = store_of(proxy.environment)
    big = os.urandom(11 << 20)
    obstore.put(store, "a/b c+d", b"x")
    obstore.put(store, "a/big", big, chunk_size=5 << 20, use_multipart=True)
    assert obstore.get(store, "a/big").bytes() == big
    obstore.get_range(store, "a/b c+d", start=0, length=1)
    obstore.head(store, "a/big")
    obstore.list(store, "a").collect()
    obstore.delete(store, ["a/b c+d", "a/big"])
    seen = {(one.operation, one.key) for one in proxy.requests}
    deletes = {("delete_many", "")}
    if server.scheme == "gs":  # obstore deletes its objects one by one
        deletes = {("delete", "a/b c+d"), ("delete", "a/big")}
    assert seen - {("create_upload", "a/big")} == {
        ("put", "a/b c+d"),
        ("upload_part", "a/big"),
        ("complete_upload", "a/big"),
        ("get", "a/big"),
        ("get_range", "a/b c+d"),
        ("head", "a/big"),
        ("list", "a/"),
        *deletes,
    }
    assert proxy.count("upload_part") == 3
    assert proxy.count("create_upload") == (server.scheme != "az")
    assert proxy.count("put", "b c") == 1
    assert proxy.count() == len(proxy.requests)
    assert not proxy.faults


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.SLOW_DOWN, 503),
        (Fault.TOO_MANY_REQUESTS, 429),
        (Fault.INTERNAL_ERROR, 500),
    ],
)
def test_an_error_is_answered_and_the_next_request_goes_through(proxy, fault, status):
    proxy.fail(fault, "get", "key")
    assert answer(proxy)[0] == status
    assert obstore.get(store_of(proxy.environment), "in/key").bytes() == BODY
    assert proxy.faults == {fault: 1}


def test_a_reset_request_does_not_reach_the_server(proxy, server):
    proxy.fail(Fault.RESET, "put")
    with pytest.raises(obstore.exceptions.GenericError):
        obstore.put(store_of(proxy.environment), "reset", b"x")
    assert "reset" not in object_servers.list_objects(server)


def test_a_put_whose_answer_is_lost_is_done(proxy, server):
    proxy.fail(Fault.LOST_ANSWER, "put")
    with pytest.raises(obstore.exceptions.GenericError):
        obstore.put(store_of(proxy.environment), "lost", b"12")
    assert object_servers.list_objects(server)["lost"] == 2


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.RESET_IN_BODY, ConnectionResetError),
        (Fault.HALF_BODY, http.client.IncompleteRead),
        (Fault.WRONG_LENGTH, http.client.IncompleteRead),
    ],
)
def test_a_body_is_cut(fault, error):
    with object_servers.start_s3() as s3, FaultProxy(s3) as proxy:
        send(s3.environment, "PUT", f"{s3.url}/bucket-public/key", body=BODY)
        proxy.fail(fault)
        with pytest.raises(error):
            answer(proxy, path="/bucket-public/key")
        assert answer(proxy, path="/bucket-public/key")[2] == BODY
        assert proxy.faults == {fault: 1}


@pytest.mark.parametrize("fault", sorted(set(Fault) - set(IN_BODY) - {Fault.AWAY}))
def test_a_client_that_tries_again_gets_over_a_fault(proxy, fault):
    store = store_of(proxy.environment, n_retries=5)
    obstore.list(store, "in").collect()
    proxy.fail(fault, "list")
    (found,) = obstore.list(store, "in").collect()
    assert found["size"] == len(BODY)
    assert proxy.faults == {fault: 1}


def test_a_stale_listing_lacks_what_was_written_since(proxy):
    store = store_of(proxy.environment)
    proxy.fail(Fault.STALE_LISTING, "list", n=2)
    assert obstore.list(store, "stale").collect() == []  # none to be stale yet
    obstore.put(store, "stale/key", b"x")
    assert obstore.list(store, "stale").collect() == []
    assert len(obstore.list(store, "stale").collect()) == 1
    assert proxy.faults == {Fault.STALE_LISTING: 1}


def test_nobody_listens_while_it_is_away(proxy):
    url = urllib.parse.urlsplit(proxy.url)
    proxy.go_away(0.3)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((url.hostname, url.port))
    time.sleep(0.5)
    assert obstore.get(store_of(proxy.environment), "in/key").bytes() == BODY


def test_the_same_seed_makes_the_same_faults_in_whatever_order(server):
    keys = [f"many/{i}" for i in range(60)]
    found = []
    for order in (keys, keys[::-1]):
        with FaultProxy(server, share=0.2, seed=3, kinds=[Fault.SLOW_DOWN]) as proxy:
            store = store_of(proxy.environment, n_retries=10)
            for key in order:
                obstore.put(store, key, b"x")
            found.append({one.key for one in proxy.requests if one.fault})
            assert proxy.count() == 60 + proxy.faults[Fault.SLOW_DOWN]
    assert found[0] == found[1]
    assert 5 < len(found[0]) < 20
