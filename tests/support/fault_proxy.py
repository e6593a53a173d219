"""A proxy before an object store that counts requests and makes faults.

with FaultProxy(server, share=0.1, seed=1) as proxy:
    run_something(proxy.environment)
    assert proxy.count("list") == 1
"""

import asyncio
import collections
import contextlib
import dataclasses
import socket
import struct
import threading
import urllib.parse
from collections.abc import Collection
from typing import Self

from tests.support.faults import IN_BODY, PASSING, Fault, Faults, Seen
from tests.support.http_messages import Head, read_body
from tests.support.object_servers import Server
from tests.support.store_operations import name_operation

_BUFFER_BYTES = 1 << 20
_EXTRA_BYTES = 17  # that a wrong length announces and that never come
_LATENCY_S = 0.3
_CODES = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY_REQUESTS: (429, "TooManyRequests"),
    Fault.INTERNAL_ERROR: (500, "InternalError"),
}


@dataclasses.dataclass(frozen=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Ends it so that the other side sees a reset."""
        if (sock := self.writer.get_extra_info("socket")) is not None:
            no_wait = struct.pack("ii", 1, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_wait)
        self.writer.transport.abort()


@dataclasses.dataclass(frozen=True)
class _Request:
    head: Head
    body: bytes
    seen: Seen

    @property
    def is_of_head(self) -> bool:
        return self.head.first_line.startswith("HEAD ")


class _CutError(Exception):
    """The connection of the client is to end now."""


class FaultProxy:
    """Listens on a port of its own, in a thread, and hands requests on to a server.

    Attributes:
      requests: all that came, in order.
    """

    def __init__(
        self,
        server: Server,
        *,
        share: float = 0.0,
        seed: int = 0,
        kinds: Collection[Fault] = PASSING,
    ) -> None:
        """Of all requests `share` meet a fault of `kinds`."""
        self.requests: list[Seen] = []
        self._server = server
        self._faults = Faults(share, seed, kinds)
        self._n_away = 0
        self._listings: dict[str, bytes] = {}
        self._clients: set[_Connection] = set()
        self._listener: asyncio.Server | None = None
        self._port = 0  # the first time any
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The endpoint, in place of the server's."""
        path = urllib.parse.urlsplit(self._server.url).path
        return f"http://127.0.0.1:{self._port}{path}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a process to the server through this proxy."""
        return {
            name: value.replace(self._server.url, self.url)
            for name, value in self._server.environment.items()
        }

    @property
    def faults(self) -> collections.Counter[Fault]:
        """How many there were of each kind."""
        found = collections.Counter(one.fault for one in self.requests if one.fault)
        return found + collections.Counter({Fault.AWAY: self._n_away})

    def count(self, operation: str = "", in_key: str = "") -> int:
        """Requests of an operation whose key holds a text; "" is any."""
        return sum(seen.fits(operation, in_key) for seen in self.requests)

    def fail(
        self, fault: Fault, operation: str = "", in_key: str = "", n: int = 1
    ) -> None:
        """Makes a fault of the next `n` requests that fit."""
        self._faults.plan(fault, operation, in_key, n)

    def go_away(self, seconds: float) -> None:
        """Cuts all connections and refuses new ones for a time; returns at once."""
        self._n_away += 1
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result()
        asyncio.run_coroutine_threadsafe(self._listen(seconds), self._loop)

    async def _listen(self, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, limit=_BUFFER_BYTES
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for client in self._clients:
            client.reset()

    async def _close(self) -> None:
        await self._refuse()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        client = _Connection(reader, writer)
        self._clients.add(client)
        server: _Connection | None = None
        ends = (
            *(OSError, asyncio.IncompleteReadError, _CutError),
            asyncio.CancelledError,  # which Python 3.11 would log of a connection
        )
        try:
            with contextlib.suppress(*ends):
                while request := await self._read_request(client):
                    if server is None or server.reader.at_eof():
                        server = await self._connect()
                    await self._answer(request, client, server)
        finally:
            self._clients.discard(client)
            for connection in (client, server):
                if connection is not None:
                    connection.writer.close()

    async def _connect(self) -> _Connection:
        parts = urllib.parse.urlsplit(self._server.url)
        return _Connection(
            *await asyncio.open_connection(
                parts.hostname, parts.port, limit=_BUFFER_BYTES
            )
        )

    async def _read_request(self, client: _Connection) -> _Request | None:
        head = await Head.read(client.reader)
        if head is None:
            return None
        if "expect" in head.headers:
            client.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = head.without("expect")
        body = b"".join([part async for part in read_body(client.reader, head)])
        method, target, _ = head.first_line.split(" ")
        operation, key = name_operation(
            self._server.scheme, method, target, head.headers
        )
        seen = Seen(operation, key, self._faults.choose(operation, key))
        self.requests.append(seen)
        return _Request(head, body, seen)

    async def _answer(
        self, request: _Request, client: _Connection, server: _Connection
    ) -> None:
        """Answers, or raises _CutError or OSError when the connection is to end."""
        seen = request.seen
        if seen.fault is Fault.STALE_LISTING:
            stale = self._listings.get(request.head.first_line)
            if stale is not None:
                client.writer.write(stale)
                return
            seen.fault = None
        if seen.fault in _CODES:
            client.writer.write(_error(request, *_CODES[seen.fault]))
            return
        if seen.fault is Fault.RESET:
            client.reset()
            raise _CutError
        if seen.fault is Fault.LATENCY:
            await asyncio.sleep(_LATENCY_S)
        server.writer.write(request.head.raw + request.body)
        head = await Head.read(server.reader)
        if head is None:
            client.reset()
            raise _CutError
        await self._hand_back(request, head, client, server)

    async def _hand_back(
        self, request: _Request, head: Head, client: _Connection, server: _Connection
    ) -> None:
        has_body = not request.is_of_head and head.status not in (204, 304)
        parts = read_body(server.reader, head, until_end=True) if has_body else _none()
        if request.seen.operation == "list" or request.seen.fault:
            body = b"".join([part async for part in parts])
            if request.seen.fault is Fault.LOST_ANSWER:
                client.reset()
                raise _CutError
            if request.seen.fault in IN_BODY:
                await _cut(request.seen, head, body, client)
            elif request.seen.operation == "list":
                self._listings[request.head.first_line] = head.raw + body
            client.writer.write(head.raw + body)
        else:
            client.writer.write(head.raw)
            async for part in parts:
                client.writer.write(part)
                await client.writer.drain()
        if head.closes:
            await client.writer.drain()
            raise _CutError


async def _none():
    return
    yield


async def _cut(seen: Seen, head: Head, body: bytes, client: _Connection) -> None:
    """Sends a part of an answer and ends the connection, if there is a part of it."""
    if len(body) < 2 or head.status >= 300:
        seen.fault = None
        return
    raw = head.raw
    if seen.fault is Fault.WRONG_LENGTH and "content-length" in head.headers:
        raw = head.with_length(len(body) + _EXTRA_BYTES)
    else:
        body = body[: len(body) // 2]
    client.writer.write(raw + body)
    await client.writer.drain()
    if seen.fault is Fault.RESET_IN_BODY:
        await asyncio.sleep(0.01)  # or the reset overtakes the body
        client.reset()
    raise _CutError


def _error(request: _Request, status: int, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>A test</Message></Error>".encode()
    if request.is_of_head:
        body = b""
    head = f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/xml\r\n\r\n".encode() + body
