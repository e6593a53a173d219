"""Stores on this machine, one after the other, for the tests of `pipeline.storage`."""

import os
from collections.abc import Iterator

import pytest

from pipeline.storage import object_clients
from tests.support.fake_object_store import FakeObjectStore


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeObjectStore]:
    """A store that the environment leads to, with keys that only it knows."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "STORAGE_", "CLOUDSDK_", "GCE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with FakeObjectStore() as server:
        for scheme in ("s3", "gs"):
            for name, value in server.environment(scheme).items():
                monkeypatch.setenv(name, value)
        object_clients.forget_clients()
        yield server
    object_clients.forget_clients()


@pytest.fixture(params=["s3", "gs"])
def bucket(server: FakeObjectStore, request: pytest.FixtureRequest) -> str:
    """The URL of a bucket, such as `s3://bucket`."""
    return server.bucket_url(request.param)
