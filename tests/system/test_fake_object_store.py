"""The store of the tests answers obstore as S3 and Cloud Storage do."""

import os
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import obstore
import obstore.store
import pytest

from tests.support.fake_object_store import FakeObjectStore
from tests.support.store_errors import error
from tests.support.store_process import ServerProcess, start_process

ODD_KEY = "a/b c%#+ä[1]*?"
DATA = b"0123456789"


@pytest.fixture
def server() -> Iterator[FakeObjectStore]:
    with FakeObjectStore() as server:
        server.page_size = 7
        yield server


def make_client(
    server: FakeObjectStore | ServerProcess, scheme: str, bucket: str = "bucket"
) -> Any:
    options: Any = {"allow_http": True}
    if scheme == "gs":
        token: Any = {"token": "a-token", "expires_at": None}
        return obstore.store.GCSStore(
            bucket,
            base_url=server.url,
            credential_provider=lambda: token,
            client_options=options,
        )
    return obstore.store.S3Store(
        bucket,
        endpoint=server.url,
        region="us-east-1",
        access_key_id="test",
        secret_access_key="test",
        client_options=options,
    )


@pytest.fixture(params=["s3", "gs"])
def client(server: FakeObjectStore, request: pytest.FixtureRequest) -> Any:
    return make_client(server, request.param)


def test_an_object_with_an_odd_key_is_written_read_and_listed(server, client):
    put = obstore.put(client, ODD_KEY, DATA)
    assert server.objects == {("bucket", ODD_KEY): DATA}
    assert obstore.get(client, ODD_KEY).bytes() == DATA
    (listed,) = obstore.list(client).collect()
    head = obstore.head(client, ODD_KEY)
    assert head["path"] == listed["path"] == ODD_KEY
    assert head["size"] == listed["size"] == len(DATA)
    assert head["e_tag"] == listed["e_tag"] == put["e_tag"]
    assert [one.operation for one in server.requests] == ["put", "get", "list", "head"]


def test_ranges_are_parts_of_the_object(client):
    obstore.put(client, "a", DATA)

    def suffix(n_bytes: int) -> bytes:
        options = {"range": {"suffix": n_bytes}}
        return bytes(obstore.get(client, "a", options=options).bytes())

    assert obstore.get_range(client, "a", start=2, length=3) == b"234"
    assert obstore.get_range(client, "a", start=8, length=99) == b"89"
    found = obstore.get_ranges(client, "a", starts=[0, 7], lengths=[2, 2])
    assert list(map(bytes, found)) == [b"01", b"78"]
    assert (suffix(3), suffix(99)) == (b"789", DATA)
    offset = obstore.get(client, "a", options={"range": {"offset": 4}})
    assert (offset.bytes(), offset.meta["size"]) == (b"456789", 10)


@pytest.mark.parametrize(
    ("data", "asked"),
    [(DATA, {"offset": 10}), (b"", {"offset": 0}), (b"", {"suffix": 1})],
)
def test_a_range_without_bytes_is_refused(client, data, asked):
    obstore.put(client, "a", data)
    with pytest.raises(obstore.exceptions.GenericError, match=r"416.*\n.*InvalidRange"):
        obstore.get(client, "a", options={"range": asked})


def test_listings_have_pages_and_folders(server, client):
    keys = [f"l/{i:02d}" for i in range(20)] + ["l/05/x", "l/05/y", "l/30/z", "m"]
    for key in keys:
        obstore.put(client, key, b"x")
    server.forget_requests()
    names = [one["path"] for one in obstore.list(client, "l").collect()]
    assert names == sorted(keys[:-1])
    assert server.counts() == {"list": 4}
    after = [one["path"] for one in obstore.list(client, "l", offset="l/18").collect()]
    assert after == ["l/19", "l/30/z"]
    found = obstore.list_with_delimiter(client, "l")
    assert found["common_prefixes"] == ["l/05", "l/30"]
    assert [one["path"] for one in found["objects"]] == keys[:20]


def test_an_object_is_created_once_and_replaced_if_unchanged(client):
    first = obstore.put(client, "a", b"1", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(client, "a", b"2", mode="create")
    version = {name: value for name, value in first.items() if value}
    obstore.put(client, "a", b"3", mode=version)
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(client, "a", b"4", mode=version)
    assert obstore.get(client, "a").bytes() == b"3"


def test_of_many_threads_one_creates(client):
    def create(number: int) -> bool:
        try:
            obstore.put(client, "a", str(number).encode(), mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    with futures.ThreadPoolExecutor(16) as executor:
        assert sum(executor.map(create, range(64))) == 1


def test_a_large_object_is_sent_in_parts(server, client):
    data = os.urandom(20 << 20)
    obstore.put(client, "a", data, use_multipart=True, chunk_size=8 << 20)
    assert server.objects["bucket", "a"] == data
    assert server.uploads == {}
    assert server.counts()["put_part"] == 3
    assert obstore.get(client, "a").bytes() == data


def test_an_upload_that_fails_is_aborted(server, client):
    def fail(request):
        return error("AccessDenied") if request.operation == "put_part" else None

    server.answers = fail
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        obstore.put(client, "a", bytes(20 << 20), use_multipart=True)
    assert server.counts()["abort_upload"] == 1
    assert (server.uploads, dict(server.objects)) == ({}, {})


def test_objects_are_copied_and_deleted(server, client):
    obstore.put(client, ODD_KEY, DATA)
    obstore.copy(client, ODD_KEY, "copy")
    assert server.objects["bucket", "copy"] == DATA
    obstore.delete(client, [ODD_KEY, "copy"])
    assert not server.objects


def test_to_delete_what_is_missing_is_an_error_of_cloud_storage_alone(server):
    obstore.delete(make_client(server, "s3"), "a")
    with pytest.raises(FileNotFoundError):
        obstore.delete(make_client(server, "gs"), "a")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_missing_bucket_is_told_from_a_missing_object(server, scheme):
    with pytest.raises(FileNotFoundError, match="NoSuchKey"):
        obstore.get(make_client(server, scheme), "a")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.get(make_client(server, scheme, "other"), "a")


def test_a_token_is_checked(server):
    server.required_token = "another"
    client = make_client(server, "gs")
    with pytest.raises(obstore.exceptions.BaseError, match="AuthenticationRequired"):
        obstore.get(client, "a")
    server.required_token = "a-token"
    obstore.put(client, "a", DATA)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_process_of_its_own_serves_until_the_block_ends(scheme):
    with start_process(["bucket"]) as server:
        client = make_client(server, scheme)
        obstore.put(client, "a", DATA)
        assert obstore.get(client, "a").bytes() == DATA
        assert server.counts() == {"put": 1, "get": 1}


def test_bytes_that_are_read_and_requests_at_once_are_counted(server, client):
    obstore.put(client, "a", DATA)
    server.forget_requests()
    server.latency_s = 0.05
    with futures.ThreadPoolExecutor(4) as executor:
        for number in range(4):
            executor.submit(obstore.get_range, client, "a", start=number, length=3)
    assert (server.n_bytes_read, server.max_open) == (12, 4)
    server.forget_requests()
    obstore.head(client, "a")
    assert (server.n_bytes_read, server.max_open) == (0, 1)
