"""Requests and answers of HTTP/1.1, read from a connection without changing a byte."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Self

PART_BYTES = 1 << 18


@dataclasses.dataclass(frozen=True)
class Head:
    """All before the body.

    Attributes:
      raw: with the empty line at its end.
      first_line: of a request "GET /path HTTP/1.1", of an answer "HTTP/1.1 200 OK".
      headers: by name in lower case.
    """

    raw: bytes
    first_line: str
    headers: Mapping[str, str]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self | None:
        """The next head, None if the connection ends before it."""
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first_line, *lines = raw.decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return cls(raw, first_line, headers)

    def without(self, name: str) -> Self:
        """The same without a header."""
        lines = self.raw.split(b"\r\n")
        prefix = f"{name}:".encode()
        kept = [line for line in lines if not line.lower().startswith(prefix)]
        headers = {one: value for one, value in self.headers.items() if one != name}
        return dataclasses.replace(self, raw=b"\r\n".join(kept), headers=headers)

    def with_length(self, n_bytes: int) -> bytes:
        """The bytes of a head that announces another length of the body."""
        line = f"Content-Length: {n_bytes}\r\n\r\n".encode()
        return self.without("content-length").raw.removesuffix(b"\r\n") + line

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first_line.split(" ", 2)[1])

    @property
    def closes(self) -> bool:
        """Whether the connection ends after this message."""
        return self.headers.get("connection", "").lower() == "close"


async def read_body(
    reader: asyncio.StreamReader, head: Head, until_end: bool = False
) -> AsyncIterator[bytes]:
    """The parts of a body, if it comes in chunks with their lengths.

    Args:
      until_end: of an answer, which without a length goes on until the connection ends.
    """
    if "chunked" in head.headers.get("transfer-encoding", ""):
        async for part in _read_chunks(reader):
            yield part
        return
    length = head.headers.get("content-length")
    if length is not None:
        async for part in _read_exactly(reader, int(length)):
            yield part
    elif until_end:
        while part := await reader.read(PART_BYTES):
            yield part


async def _read_exactly(
    reader: asyncio.StreamReader, n_bytes: int
) -> AsyncIterator[bytes]:
    while n_bytes:
        part = await reader.read(min(n_bytes, PART_BYTES))
        if not part:
            raise asyncio.IncompleteReadError(b"", n_bytes)
        n_bytes -= len(part)
        yield part


async def _read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readuntil(b"\r\n")
        n_bytes = int(line.split(b";")[0], 16)
        yield line + await reader.readexactly(n_bytes + len(b"\r\n"))
        if n_bytes == 0:
            return
