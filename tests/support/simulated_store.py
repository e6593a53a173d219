"""An S3 with many objects and a delay before each answer, in a process of its own.

Objects may be numbered: a million source shards that all hold the same take no memory.
Requests are counted by operation and folder, so that a test or a benchmark can say what
a command asks for.
"""

import collections
import contextlib
import dataclasses
import heapq
import itertools
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.support import store_process
from tests.support.fake_object_store import FakeObjectStore
from tests.support.object_table import Asked, Entry, Key, ObjectTable, names_among
from tests.support.store_requests import Request

BUCKET = "bucket"
_N_DIGITS = 7
_UPDATED_S = 1_700_000_000.0

Counts = collections.Counter[tuple[str, str]]  # of (operation, folder)


@dataclasses.dataclass(frozen=True)
class Numbered(Sequence[Key]):
    """The keys of objects `FOLDER/0000000.tar` and so on, which hold the same."""

    folder: str
    n: int
    suffix: str = ".tar"
    data: bytes = b"x" * 1000

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: Any) -> Any:
        if number >= self.n:
            raise IndexError(number)
        return BUCKET, f"{self.folder}/{number:0{_N_DIGITS}d}{self.suffix}"

    def entry(self, key: str) -> Entry | None:
        """The object of a key, None if it is none of these."""
        digits = key[len(self.folder) + 1 :][:_N_DIGITS]
        if key != f"{self.folder}/{digits}{self.suffix}" or not digits.isdecimal():
            return None
        number = int(digits)
        etag = f'"{number:032x}"'
        return Entry(self.data, etag, number, _UPDATED_S) if number < self.n else None


class _Table(ObjectTable):
    """Objects that were written, beside numbered ones, which stay as they are."""

    def __init__(self, numbered: Sequence[Numbered]) -> None:
        super().__init__()
        self._numbered = numbered

    def entry(self, key: Key) -> Entry | None:
        written = super().entry(key)
        if written or key[0] != BUCKET:
            return written
        found = (numbered.entry(key[1]) for numbered in self._numbered)
        return next(filter(None, found), None)

    def names(self, *asked: str) -> Iterator[str]:
        parts = [names_among(keys, Asked(*asked)) for keys in self._numbered]
        names = heapq.merge(super().names(*asked), *parts)
        return (name for name, _ in itertools.groupby(names))


class _Server(FakeObjectStore):
    """Answers after a delay, and keeps counts of requests alone."""

    def __init__(self, numbered: Sequence[Numbered]) -> None:
        self.folder_counts: Counts = collections.Counter()
        super().__init__([BUCKET])
        self.objects = _Table(numbered)

    def _note(self, request: Request) -> None:
        path = request.key or request.query.get("prefix", "")
        with self._lock:
            self.folder_counts[request.operation, path.rpartition("/")[0]] += 1


class SimulatedStore:
    """The store as its clients see it: `s3://bucket`."""

    def __init__(self, pipe: multiprocessing.connection.Connection) -> None:
        self._pipe = pipe
        self._url = self._ask("url")

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()

    def environment(self) -> dict[str, str]:
        """The variables that lead `s3://` there."""
        return store_process.environment("s3", self._url)

    def set_latency(self, latency_s: float) -> None:
        """Answers so long after each request from now on."""
        self._ask("latency", latency_s)

    @contextlib.contextmanager
    def without_latency(self) -> Iterator[None]:
        """Answers at once within the block."""
        latency_s = self._ask("latency", 0.0)
        yield
        self._ask("latency", latency_s)

    def put(self, key_to_data: Mapping[str, bytes]) -> None:
        """Writes objects without requests; those that share bytes share memory."""
        self._ask("put", dict(key_to_data))

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects that were written, without requests."""
        self._ask("delete", list(keys))

    def take_max_at_once(self) -> int:
        """Requests that were open at the same time since this was asked last."""
        return self._ask("max_at_once")

    def take_counts(self) -> Counts:
        """Requests by operation and folder since they were taken last."""
        return self._ask("counts")

    def processor_seconds(self) -> float:
        """What the store has taken of the processors."""
        return self._ask("processor_seconds")

    def add_counts(self, counts: Counts) -> None:
        """Counts requests that were taken as if they had not been."""
        self._ask("add_counts", counts)


@contextlib.contextmanager
def start(*numbered: Numbered, latency_s: float = 0.06) -> Iterator[SimulatedStore]:
    """A store whose processor time is not the client's."""
    own, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs, numbered), daemon=True)
    process.start()
    try:
        store = SimulatedStore(own)
        store.set_latency(latency_s)
        yield store
    finally:
        process.kill()
        process.join()


def _serve(
    pipe: multiprocessing.connection.Connection, numbered: Sequence[Numbered]
) -> None:
    with _Server(numbered) as server:
        while True:
            question, *values = pipe.recv()
            pipe.send(_ANSWERS[question](server, *values))


def _put(server: _Server, key_to_data: Mapping[str, bytes]) -> None:
    with server._lock:
        for key, data in key_to_data.items():
            server.objects[BUCKET, key] = data


def _delete(server: _Server, keys: Sequence[str]) -> None:
    with server._lock:
        for key in keys:
            del server.objects[BUCKET, key]


def _set_latency(server: _Server, latency_s: float) -> float:
    before, server.latency_s = server.latency_s, latency_s
    return before


def _take_counts(server: _Server) -> Counts:
    with server._lock:
        counts, server.folder_counts = server.folder_counts, collections.Counter()
        return counts


def _add_counts(server: _Server, counts: Counts) -> None:
    with server._lock:
        server.folder_counts += counts


def _take_max_at_once(server: _Server) -> int:
    with server._lock:
        found, server.max_open = server.max_open, server.n_open
        return found


_ANSWERS: Mapping[str, Any] = {
    "url": lambda server: server.url,
    "latency": _set_latency,
    "put": _put,
    "delete": _delete,
    "counts": _take_counts,
    "add_counts": _add_counts,
    "max_at_once": _take_max_at_once,
    "processor_seconds": lambda server: time.process_time(),
}
