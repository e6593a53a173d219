"""Files in S3, Cloud Storage and Azure, by obstore.

In: URLs. Out: bytes, listings, objects that are there as a whole or not at all. There
is one client per process and bucket, made when it is first needed and shared by all
threads. The library sends large objects in parts and retries most of what may pass;
`retry` adds answers that break in their body, and requests that change something.
"""

import contextlib
import pathlib
import typing
from collections.abc import Iterable, Sequence

from pipeline.storage import object_listings, object_urls, remote_files, wildcards
from pipeline.storage.credentials import expect_keys_to_write
from pipeline.storage.file_facts import FileFacts
from pipeline.storage.object_clients import client_and_folder, client_and_key, client_of
from pipeline.storage.object_errors import translated
from pipeline.storage.object_listings import KEYS_PER_PAGE, facts_of
from pipeline.storage.obstore_library import obstore
from pipeline.storage.remembered_listings import changed
from pipeline.storage.retries import retry

PART_BYTES = 16 << 20
_MAX_PUT_BYTES = 4 * PART_BYTES  # as one request; more goes in parts
_MAX_PARTS_AT_ONCE = 4

Version = dict[str, str]  # what a conditional write names
_NO_VERSION: Version = {"e_tag": '"0"', "version": "1"}  # which no object has


@retry
def probe_folder(folder: str) -> None:
    """Lists a folder and reads what comes first there, giving up after seconds.

    Raises:
      OSError: with what is wrong; a folder that holds nothing is no error.
    """
    with client_and_folder(folder, quick=True) as (client, key):
        pages = obstore().list(client, key or None, chunk_size=KEYS_PER_PAGE)
        first = next(iter(pages), ())
    if first:
        bucket, _ = object_urls.parse(folder)
        probe_object(bucket.url(first[0]["path"]))


@retry
def probe_object(url: str) -> None:
    """Asks for an object, without its data, giving up after seconds.

    Raises:
      OSError: with what is wrong; an object that is not there is no error.
    """
    with (
        contextlib.suppress(FileNotFoundError),
        client_and_key(url, quick=True) as (client, key),
    ):
        obstore().get(client, key)


def probe_writing(folder: str) -> None:
    """Asks whether objects may be written into a folder, giving up after seconds.

    It is a write on a condition that does not hold, so it leaves nothing.

    Raises:
      OSError: with what is wrong.
    """
    exceptions = obstore().exceptions
    with client_and_folder(folder, quick=True) as (client, key):
        for is_last in (False, False, True):
            try:
                obstore().put(client, f"{key.rstrip('/')}/probe", b"", mode=_NO_VERSION)
            except (exceptions.PreconditionError, FileNotFoundError):
                return
            except exceptions.GenericError:  # the library tries such a put but once
                if is_last:
                    raise


def facts(url: str) -> FileFacts:
    """Raises FileNotFoundError if there is no such object."""
    with client_and_key(url) as (store, key):
        return facts_of(object_urls.parse(url)[0], obstore().head(store, key))


def read(url: str) -> memoryview:
    """All bytes of an object, without a copy."""
    return remote_files.read_whole(url)[0]


def read_with_version(url: str) -> tuple[bytes, Version]:
    """The bytes of an object, and what `replace` needs to know of them."""
    data, meta = remote_files.read_whole(url)
    return bytes(data), _version(meta)


def _version(meta: typing.Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name]}


read_range = remote_files.read_range
read_end = remote_files.read_end
open_for_reading = remote_files.open_ranges
open_stream = remote_files.open_stream
list_folder = object_listings.list_folder
list_below = object_listings.list_below
list_objects = object_listings.list_objects


def write(url: str, data: typing.Any) -> None:
    """Writes an object as a whole, from a buffer."""
    with changed(url):
        _put(url, data, len(data))


def publish(local: str, url: str) -> None:
    """Writes an object as a whole, from a file of this machine."""
    path = pathlib.Path(local)
    with changed(url):
        _put(url, path, path.stat().st_size)


@retry
def _put(url: str, data: typing.Any, n_bytes: int) -> None:
    with client_and_key(url) as (store, key):
        expect_keys_to_write(store)
        obstore().put(
            store,
            key,
            data,
            use_multipart=n_bytes > _MAX_PUT_BYTES,
            chunk_size=PART_BYTES,
            max_concurrency=_MAX_PARTS_AT_ONCE,
        )


def create(url: str, data: bytes) -> bool:
    """Creates an object; False if there is one, of whatever contents."""
    with changed(url):
        return _put_if(url, data, "create", "AlreadyExistsError")


def replace(url: str, data: bytes, version: Version) -> bool:
    """Replaces an object unless it has changed since it was read: then False."""
    with changed(url):
        return _put_if(url, data, version, "PreconditionError")


@retry
def _put_if(url: str, data: bytes, mode: typing.Any, refusal: str) -> bool:
    with client_and_key(url) as (store, key):
        expect_keys_to_write(store)
        exceptions = obstore().exceptions
        refusals = (getattr(exceptions, refusal), FileNotFoundError)
        try:
            obstore().put(store, key, data, mode=mode)
        except refusals:
            # Ours may have been written, and the answer lost.
            with contextlib.suppress(FileNotFoundError):
                return read(url) == data
            return False
    return True


def delete(urls: Sequence[str]) -> None:
    """Deletes objects, or with a slash at its end all that is in a folder."""
    folders = [url for url in urls if url.endswith("/")]
    urls = [url for url in urls if not url.endswith("/")]
    urls += [found.path for folder in folders for found in list_below(folder)]
    if not urls:
        return
    with contextlib.ExitStack() as stack:
        for folder in {url.rpartition("/")[0] for url in urls}:
            stack.enter_context(changed(f"{folder}/"))
        _delete_objects(urls)


@retry
def _delete_objects(urls: Sequence[str]) -> None:
    bucket, _ = object_urls.parse(urls[0])
    keys = [object_urls.parse(url)[1] for url in urls]
    with translated(urls[0]):
        try:
            obstore().delete(client_of(bucket), keys)
        except FileNotFoundError:  # such as the second try of a lost answer
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    obstore().delete(client_of(bucket), key)


def match(pattern: str, known: Sequence[str] = ()) -> Iterable[FileFacts]:
    """The objects that a pattern matches.

    Args:
      known: sorted URLs of an earlier listing, which make this one faster.
    """
    _, key = object_urls.parse(pattern)
    if wildcards.has_wildcard(key) or pattern.endswith("/"):
        return object_listings.match(pattern, known)
    try:
        return [facts(pattern)]
    except FileNotFoundError:
        return []
