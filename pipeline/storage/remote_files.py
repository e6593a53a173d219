"""Open files of object stores: streams for tars, ranges for Parquet.

In: a URL. Out: a buffered, seekable binary file. A stream is one request whose next
bytes are fetched while the last ones are used; ranges fetch the end of the file first,
and more at a time the longer they are read in order.
"""

import io
import os
import typing
from collections.abc import Iterator
from concurrent import futures

from pipeline.storage import object_urls
from pipeline.storage.object_clients import client_and_key
from pipeline.storage.object_errors import (
    BrokenError,
    StoreError,
    is_behind_end,
    translated,
)
from pipeline.storage.obstore_library import obstore
from pipeline.storage.retries import retry

if typing.TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 2 << 20  # of a stream; two are held
_BUFFER_BYTES = 256 << 10
_MAX_SKIPPED_BYTES = 4 << 20  # read and dropped rather than asked for anew
_N_RESUMPTIONS = 10  # of a stream in a row without a byte between them
_TAIL_BYTES = 1 << 20  # a small Parquet file is one request
_MIN_WINDOW_BYTES, _MAX_WINDOW_BYTES = 1 << 20, 16 << 20
_N_STREAMS_AT_ONCE = 32


def open_stream(url: str) -> typing.BinaryIO:
    """A file to read from its start; raises FileNotFoundError if it is missing."""
    return io.BufferedReader(_Stream(url), _BUFFER_BYTES)


def open_ranges(url: str) -> typing.BinaryIO:
    """A file to read here and there; raises FileNotFoundError if it is missing."""
    return io.BufferedReader(_Ranges(url), _BUFFER_BYTES)


@retry
def read_whole(url: str) -> tuple[memoryview, typing.Any]:
    """All bytes of an object, without a copy, and what its store says of it."""
    with client_and_key(url) as (client, key):
        return _get(url, client, key, {})


def _get(
    url: str, client: typing.Any, key: str, options: dict[str, typing.Any]
) -> tuple[memoryview, typing.Any]:
    """The bytes of one answer, none of them missing, and the facts in it."""
    found = obstore().get(client, key, options=options)
    start, end = found.range
    data = memoryview(found.bytes())
    if len(data) != end - start:
        raise BrokenError(f"{url}: {len(data)} bytes, expected {end - start}")
    return data, found.meta


class _RemoteFile(io.RawIOBase):
    """A position in an object; subclasses fetch the bytes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._position = 0
        self._size = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        if not len(view) or self._position >= self._size:
            return 0
        data = self._bytes_at(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _bytes_at(self, start: int, n_bytes: int) -> memoryview:
        """At least one byte and up to `n_bytes` of those from `start` on."""
        raise NotImplementedError


class _Stream(_RemoteFile):
    """The bytes of one request, and of a further one after each seek that is far."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._chunk = memoryview(b"")
        self._chunk_start = 0
        self._etag: str | None = None
        self._open(0)

    def _open(self, start: int) -> None:
        self._chunk, self._chunk_start = memoryview(b""), start
        if start and start >= self._size:
            return
        with client_and_key(self._url) as (client, key):
            # An object of no bytes has no range, not even from its start.
            options: dict = {"range": {"offset": start}} if start else {}
            if self._etag:  # the rest of another object would not fit
                options["if_match"] = self._etag
            found = obstore().get(client, key, options=options)
            self._size, self._etag = found.meta["size"], found.meta["e_tag"]
            self._chunks: Iterator = iter(found.stream(min_chunk_size=_CHUNK_BYTES))
        self._fetch_next()

    def _fetch_next(self) -> None:
        self._next = _executor().submit(next, self._chunks, None)

    def _bytes_at(self, start: int, n_bytes: int) -> memoryview:
        skipped = start - (self._chunk_start + len(self._chunk))
        if start < self._chunk_start or skipped > _MAX_SKIPPED_BYTES:
            self._open(start)
        n_failures = 0
        while start >= self._chunk_start + len(self._chunk):
            try:
                self._take_next()
                n_failures = 0
            except StoreError:
                n_failures += 1
                if n_failures > _N_RESUMPTIONS:
                    raise
                self._open(self._chunk_start + len(self._chunk))
        first = start - self._chunk_start
        return self._chunk[first : first + n_bytes]

    def _take_next(self) -> None:
        with translated(self._url):
            chunk = self._next.result()
        end = self._chunk_start + len(self._chunk)
        if chunk is None:  # the body ended before the size that was named
            raise StoreError(f"{self._url}: {end} bytes, expected {self._size}")
        self._chunk, self._chunk_start = memoryview(chunk), end
        if end + len(chunk) < self._size:
            self._fetch_next()
        else:
            self._next = futures.Future()
            self._next.set_result(None)


class _Ranges(_RemoteFile):
    """Windows of an object; each that follows the one before is twice as long."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._tail, self._size, self._etag = _read_tail(url, _TAIL_BYTES)
        self._tail_start = self._size - len(self._tail)
        self._window, self._window_start = memoryview(b""), 0
        self._window_bytes = _MIN_WINDOW_BYTES

    def _bytes_at(self, start: int, n_bytes: int) -> memoryview:
        if start >= self._tail_start:
            first = start - self._tail_start
            return self._tail[first : first + n_bytes]
        end = self._window_start + len(self._window)
        if not self._window_start <= start < end:
            is_next = start == end
            doubled = min(2 * self._window_bytes, _MAX_WINDOW_BYTES)
            self._window_bytes = doubled if is_next else _MIN_WINDOW_BYTES
            length = min(max(n_bytes, self._window_bytes), self._tail_start - start)
            self._window = read_range(self._url, start, length, self._etag)
            self._window_start = start
            if len(self._window) < length:
                found = f"{len(self._window)} bytes at {start}"
                raise StoreError(f"{self._url}: {found}, expected {length}")
        first = start - self._window_start
        return self._window[first : first + n_bytes]


@retry
def read_range(
    url: str, start: int, length: int, etag: str | None = None
) -> memoryview:
    """Up to `length` bytes, fewer where the object ends.

    Args:
      etag: of the object that is meant; another one is a StoreError.
    """
    options: dict[str, typing.Any] = {"range": (start, start + length)}
    if etag:
        options["if_match"] = etag
    with client_and_key(url) as (client, key):
        if length == 0:
            return memoryview(b"")
        try:
            data, meta = _get(url, client, key, options)
        except obstore().exceptions.GenericError as error:
            if not is_behind_end(error):
                raise
            return memoryview(b"")
    expected = min(length, meta["size"] - start)
    if len(data) != expected:
        raise BrokenError(f"{url}: {len(data)} bytes at {start}, expected {expected}")
    return data


def read_end(url: str, length: int) -> tuple[memoryview, int]:
    """The last bytes of an object, up to `length`, and its size."""
    data, size, _ = _read_tail(url, length)
    return data, size


@retry
def _read_tail(url: str, length: int) -> tuple[memoryview, int, str | None]:
    """The last bytes of an object, its size and its entity tag."""
    with client_and_key(url) as (client, key):
        if object_urls.parse(url)[0].scheme == "az":  # which knows no such ranges
            meta = obstore().head(client, key)
            size, etag = meta["size"], meta["e_tag"]
            start = max(0, size - length)
            return read_range(url, start, size - start, etag), size, etag
        options = {"range": {"suffix": length}}
        try:
            data, meta = _get(url, client, key, options)
        except obstore().exceptions.GenericError as error:
            if not is_behind_end(error):
                raise
            return memoryview(b""), 0, None  # no bytes have no last ones
        return data, meta["size"], meta["e_tag"]


_executors: dict[int, futures.ThreadPoolExecutor] = {}


def _executor() -> futures.Executor:
    """The threads that fetch what streams need next; a forked process has its own."""
    if os.getpid() not in _executors:
        _executors.clear()
        _executors[os.getpid()] = futures.ThreadPoolExecutor(_N_STREAMS_AT_ONCE)
    return _executors[os.getpid()]
