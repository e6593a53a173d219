"""Chosen byte ranges of many files: in order, many at once, in bounded memory.

In: spans of files, in the order in which they are wanted. Out: their bytes. Near spans
of a store share a request, whose gaps are read and dropped; all of them together are at
most a fifth of what is wanted.
"""

import collections
import contextlib
import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

from pipeline.storage import files
from pipeline.storage.file_errors import CANNOT_BE_OPENED

MAX_REQUESTS_AT_ONCE = 32
MAX_BYTES_AT_ONCE = 64 << 20
_MAX_REQUEST_BYTES = 4 << 20
# With so many requests at once, one more costs what it takes to read about as much.
_MAX_GAP_BYTES = 64 << 10
_MAX_GAPS_PER_WANTED = 0.2


class Span(typing.NamedTuple):
    """Some bytes of a file."""

    path: str
    start: int
    length: int


@dataclasses.dataclass(frozen=True)
class _Request:
    """Bytes that are read together, and the spans that they hold."""

    path: str
    start: int
    length: int
    spans: tuple[Span, ...]

    def cut(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The bytes of each span, fewer where the file ends."""
        if len(self.spans) == 1:
            yield bytes(data)
            return
        for _, start, length in self.spans:
            first = start - self.start
            yield bytes(data[first : first + length])


def read_ranges(
    path: str, spans: Iterable[tuple[int, int]], max_requests: int | None = None
) -> Iterator[bytes]:
    """As `read_spans`, of one file; raises the error if it cannot be opened."""
    of_path = (Span(path, *span) for span in spans)
    with contextlib.closing(read_spans(of_path, max_requests)) as found:
        for data in found:
            if isinstance(data, OSError):
                raise data
            yield data


def read_spans(
    spans: Iterable[Span], max_requests: int | None = None
) -> typing.Generator[bytes | OSError, None, None]:
    """The bytes of each span, in order; fewer where a file ends.

    Of a file that is missing or may not be read it is the error, and the other files
    are read on. Spans are taken as far ahead as 32 requests reach. Requests begun, of
    which spans are still to be given, are for at most 64 MiB, or one for one longer
    span: this is the bound of memory, beside the span that was given last.

    Args:
      max_requests: at once, if not 32.

    Raises:
      OSError: on a failure that another attempt may cure, such as of a network.
    """
    begun: collections.deque[tuple[_Request, Callable[[], bytes | memoryview]]]
    begun, n_bytes = collections.deque(), 0
    max_requests = max_requests or MAX_REQUESTS_AT_ONCE
    with contextlib.closing(_Reader(max_requests)) as reader:
        for request in _join_near(spans):
            while begun and (
                len(begun) >= max_requests
                or n_bytes + request.length > MAX_BYTES_AT_ONCE
            ):
                first, answer = begun.popleft()
                yield from _spans_of(first, answer)
                n_bytes -= first.length
            begun.append((request, reader.begin(request)))
            n_bytes += request.length
        while begun:
            yield from _spans_of(*begun.popleft())


def _spans_of(
    request: _Request, answer: Callable[[], bytes | memoryview]
) -> Iterator[bytes | OSError]:
    try:
        data = answer()
    except CANNOT_BE_OPENED as error:
        for _ in request.spans:
            yield error
    else:
        yield from request.cut(data)


def _join_near(spans: Iterable[Span]) -> Iterator[_Request]:
    """Requests that hold the spans in order, each span as a whole in one.

    Bytes between the spans of requests are, up to any of them, at most a fifth of those
    of the spans.
    """
    held: list[Span] = []
    start = end = n_wanted = n_gaps = 0
    for span in spans:
        n_wanted += span.length
        span_end = span.start + span.length
        gap = max(0, span.start - end)
        if (
            held
            and span.path == held[-1].path
            and files.is_remote(span.path)  # a request to a disk costs nothing
            and span.start >= start
            and gap <= _MAX_GAP_BYTES
            and n_gaps + gap <= _MAX_GAPS_PER_WANTED * n_wanted
            and max(end, span_end) - start <= _MAX_REQUEST_BYTES
        ):
            n_gaps += gap
            end = max(end, span_end)
        else:
            if held:
                yield _Request(held[0].path, start, end - start, tuple(held))
            held, start, end = [], span.start, span_end
        held.append(span)
    if held:
        yield _Request(held[0].path, start, end - start, tuple(held))


class _Reader:
    """Begins requests: to stores in threads, for other files with a word to the system.

    A file that is open stays so until the requests for it are done.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._executor: futures.ThreadPoolExecutor | None = None
        self._opened: collections.deque[_OpenFile] = collections.deque()

    def begin(self, request: _Request) -> Callable[[], bytes | memoryview]:
        """Gives the function that waits for the bytes."""
        path, start, length = request.path, request.start, request.length
        if not files.is_object_url(path):
            if not self._opened or self._opened[-1].path != path:
                self._opened.append(_OpenFile(path))
            file = self._opened[-1]
            file.expect(start, length)
            return lambda: self._read(file, start, length)
        from pipeline.storage import object_store  # local runs do without obstore

        if self._executor is None:
            self._executor = futures.ThreadPoolExecutor(self._max_requests)
        read_range = object_store.read_range
        return self._executor.submit(read_range, path, start, length).result

    def _read(self, file: "_OpenFile", start: int, length: int) -> bytes:
        while self._opened[0] is not file:
            self._opened.popleft().close()
        return file.read(start, length)

    def close(self) -> None:
        """Waits for no request."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        while self._opened:
            self._opened.popleft().close()


class _OpenFile:
    """A file that is opened when it is first needed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: typing.BinaryIO | None = None

    def expect(self, start: int, length: int) -> None:
        """Says what is read later: the disk or the server of a file brings it."""
        if files.is_remote(self.path) or not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError):  # said when it is read
            is_new = self._file is None
            number = self._open().fileno()
            if is_new:  # no byte beside what is asked for
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
            os.posix_fadvise(number, start, length, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes, fewer where the file ends."""
        file = self._open()
        file.seek(start)
        return file.read(length)

    def _open(self) -> typing.BinaryIO:
        if self._file is None:
            self._file = files.open_for_reading(self.path)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
