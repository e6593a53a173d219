"""Answers that break, and answers that are lost: calls give what they would without."""

import collections
import os

import pytest

from pipeline.storage import files, object_listings, object_store, retries
from pipeline.storage.object_errors import StoreError
from tests.support.quick_http import Reply

DATA = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(retries, "DELAY_S", 0.001)


def break_next(server, operation: str, n: int = 1, n_bytes_sent: int = 10) -> None:
    """Does what the next requests of an operation ask for, and cuts the answers."""
    n_left = collections.Counter({operation: n})

    def cut(request):
        if not n_left[request.operation]:
            return None
        n_left[request.operation] -= 1
        with server._lock:
            reply = server._operations[request.operation](request)
        body = bytes(reply.body) or b"x" * 20  # or there is nothing to cut
        return Reply(reply.status, body, reply.headers, n_bytes_sent)

    server.answers = cut


def test_listings_that_break_are_complete(server, bucket):
    paths = {f"{bucket}/run/{number:03d}": 1 for number in range(50)}
    for path in paths:
        files.write(path, b"x")
    server.page_size = 20
    for function in (files.list_folder, files.list_below):
        break_next(server, "list", n=3)
        assert len(function(f"{bucket}/run")) == 50
    break_next(server, "list")
    assert files.sizes(f"{bucket}/run/*") == paths


def test_a_listing_goes_on_behind_the_last_key(server, bucket, monkeypatch):
    monkeypatch.setattr(object_listings, "KEYS_PER_PAGE", 10)
    for number in range(100):
        server.objects["bucket", f"run/{number:03d}"] = b"x"
    server.page_size = 10
    n_pages = iter(range(10**6))

    def cut_every_second(request):
        if request.operation != "list" or next(n_pages) % 2 == 0:
            return None
        with server._lock:
            reply = server._list(request)
        return Reply(200, reply.body, reply.headers, n_bytes_sent=10)

    server.answers = cut_every_second
    assert len(files.list_below(f"{bucket}/run")) == 100


def test_a_longer_length_than_the_body_is_read_again(server, bucket):
    files.write(f"{bucket}/a", DATA)

    def lie(request):
        if request.operation != "get" or n_left.pop("get", None) is None:
            return None
        entry = server.objects.entry(("bucket", "a"))
        headers = {"ETag": entry.etag, "Last-Modified": "Mon, 30 Nov 2026 07:00:00 GMT"}
        return Reply(200, DATA + b"lies", headers, n_bytes_sent=len(DATA))

    for function in (files.read, lambda path: files.read_with_version(path)[0]):
        n_left = {"get": 1}
        server.answers = lie
        assert function(f"{bucket}/a") == DATA


def test_a_file_that_changes_while_it_is_read_is_an_error(bucket):
    path = f"{bucket}/a"
    files.write(path, os.urandom(3 << 20))
    with files.open_for_reading(path) as file:
        file.seek(0)
        files.write(path, os.urandom(3 << 20))
        with pytest.raises(StoreError, match="has changed while it was read"):
            file.read(10)


@pytest.mark.parametrize("answer", [None, "other"])
def test_a_creation_whose_answer_is_lost_says_who_was_first(server, bucket, answer):
    path = f"{bucket}/lock"
    if answer == "other":
        files.write(path, b"other")
    break_next(server, "put", n_bytes_sent=0)
    assert files.create(path, b"own") == (answer is None)
    assert files.read(path) == (b"own" if answer is None else b"other")
    _, version = files.read_with_version(path)
    break_next(server, "put", n_bytes_sent=0)
    assert files.replace(path, b"new", version)
    assert not files.replace(path, b"late", version)


def test_deletions_whose_answers_are_lost_are_done(server, bucket):
    for name in "abc":
        files.write(f"{bucket}/run/{name}", b"x")
    for operation in ("delete", "delete_many"):
        break_next(server, operation, n_bytes_sent=0)
        files.write(f"{bucket}/run/a", b"x")
        files.delete(f"{bucket}/run", ["a"])
        assert not files.is_file(f"{bucket}/run/a")
    files.delete_folder(bucket, "run")
    assert not server.objects


@pytest.mark.parametrize("operation", ["create_upload", "complete_upload"])
def test_a_large_write_whose_answer_is_lost_is_there(
    server, bucket, monkeypatch, operation
):
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(object_store, "_MAX_PUT_BYTES", 6 << 20)
    data = os.urandom(11 << 20)
    break_next(server, operation)
    files.write(f"{bucket}/a", data)
    assert server.objects["bucket", "a"] == data
    server.answers = lambda request: None
    files.abort_uploads(bucket)
    assert not server.uploads


def test_the_end_of_uploads_is_asked_for_again(server, bucket):
    answers = [Reply(status) for status in (503, 429, 500)]
    server.answers = lambda request: (
        answers.pop() if answers and request.operation == "list_uploads" else None
    )
    assert files.abort_uploads(f"{bucket}/run") == 0
    assert answers == []
