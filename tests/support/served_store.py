"""A store in memory that `s3://` or `gs://` leads to while a test lasts."""

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from pipeline.storage import object_clients
from tests.support.fake_object_store import FakeObjectStore


@contextlib.contextmanager
def serve(scheme: str) -> Iterator[FakeObjectStore]:
    with FakeObjectStore() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment(scheme).items():
            patch.setenv(name, value)
        object_clients.forget_clients()
        yield server
    object_clients.forget_clients()


def upload(server: FakeObjectStore, folder: pathlib.Path, place: str) -> None:
    """Puts the files of a folder below `place`, such as `run/tfrecords`."""
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            server.objects["bucket", f"{place}/{name}"] = path.read_bytes()
