"""One client of obstore per process and bucket, shared by all threads.

In: a URL. Out: the client and the key. A client is made when it is first needed, after
a fork again; it is never pickled: a worker makes its own.
"""

import contextlib
import datetime
import functools
import os
import threading
import typing
from collections.abc import Iterator

from pipeline.storage import credentials, object_urls, recent_tables
from pipeline.storage.object_errors import translated
from pipeline.storage.object_urls import Bucket
from pipeline.storage.obstore_library import obstore

# The waits are drawn at random and may stay short, so that a number of
# them says little: the time alone ends them.
_RETRIES: dict[str, typing.Any] = {
    "max_retries": 10_000,
    "backoff": {
        "init_backoff": datetime.timedelta(seconds=0.2),
        "max_backoff": datetime.timedelta(seconds=10),
        "base": 3,
    },
    "retry_timeout": datetime.timedelta(minutes=2),
}
_TIMEOUTS = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "1h"}
# A place is tried in a moment before any work; later a store may be away for minutes.
_QUICK_RETRIES: dict[str, typing.Any] = {
    "max_retries": 2,
    "retry_timeout": datetime.timedelta(seconds=6),
}
_QUICK_TIMEOUTS = {"connect_timeout": "4s", "read_timeout": "6s", "timeout": "8s"}

Client = typing.Any  # of obstore, one class per scheme


@contextlib.contextmanager
def client_and_folder(url: str, quick: bool = False) -> Iterator[tuple[Client, str]]:
    """The client and the key of a folder, "" for all of a bucket.

    Errors of the block name the URL.

    Args:
      quick: gives up after seconds, where others wait for a store for minutes.
    """
    bucket, key = object_urls.parse(url)
    with translated(url):
        yield client_of(bucket, quick), key


@contextlib.contextmanager
def client_and_key(url: str, quick: bool = False) -> Iterator[tuple[Client, str]]:
    """As `client_and_folder`, for an object.

    Raises:
      IsADirectoryError: if the URL is a bucket alone.
    """
    if not object_urls.parse(url)[1]:
        raise IsADirectoryError(f"{url}: expected an object, found a bucket")
    with client_and_folder(url, quick) as found:
        yield found


def client_of(bucket: Bucket, quick: bool = False) -> Client:
    """The client of a bucket; raises CredentialsError if there are no keys for it."""
    with _lock:  # or two threads that begin together make one each
        return _make_client(bucket, quick)


@functools.cache
def _make_client(bucket: Bucket, quick: bool) -> Client:
    classes = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
    make = getattr(obstore().store, classes[bucket.scheme])
    config = credentials.config_of(bucket)
    options = config.pop("client_options", {})
    options |= _QUICK_TIMEOUTS if quick else _TIMEOUTS
    retries = _QUICK_RETRIES if quick else _RETRIES
    return make(**config, client_options=options, retry_config=retries)


_lock = threading.Lock()


def forget_clients() -> None:
    """Makes new clients from now on, such as of other flags or in a forked process."""
    global _lock
    _lock = threading.Lock()  # a fork may have copied it while it was held
    _make_client.cache_clear()
    recent_tables.forget()


os.register_at_fork(after_in_child=forget_clients)
