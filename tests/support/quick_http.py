"""HTTP/1.1 over connections that stay open: the little that clients of stores need.

`http.server` takes longer to read the headers of a small request than to answer it.
"""

import dataclasses
import http
import socketserver
from collections.abc import Callable, Mapping

Headers = dict[str, str]  # names in small letters


@dataclasses.dataclass(frozen=True)
class Reply:
    """A status, a body and headers; a HEAD sends the length of the body alone."""

    status: int
    body: bytes | memoryview = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    n_bytes_sent: int | None = None  # of the body, before the connection is cut


Answer = Callable[[str, str, Headers, bytes], Reply]  # method, target, headers, body


def make_handler(answer: Answer) -> type[socketserver.StreamRequestHandler]:
    """The class whose instances each serve one connection."""

    class Connection(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            try:
                while self._answer_one():
                    pass
            except ConnectionError:  # the client has gone
                pass

        def _answer_one(self) -> bool:
            """False at the end of the connection."""
            line = self.rfile.readline()
            if not line:
                return False
            method, target, _ = line.decode("latin-1").split(" ", 2)
            headers = self._read_headers()
            if "expect" in headers:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            n_bytes = int(headers.get("content-length", 0))
            body = self.rfile.read(n_bytes)
            if len(body) < n_bytes:
                return False
            reply = answer(method, target, headers, body)
            self._send(reply, method == "HEAD")
            is_cut = reply.n_bytes_sent is not None
            return not is_cut and headers.get("connection", "").lower() != "close"

        def _read_headers(self) -> Headers:
            headers = {}
            while line := self.rfile.readline().rstrip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            return headers

        def _send(self, reply: Reply, is_head: bool) -> None:
            lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
            lines += [f"{name}: {value}" for name, value in reply.headers.items()]
            if reply.status not in (204, 304):
                lines.append(f"Content-Length: {len(reply.body)}")
            head = "\r\n".join((*lines, "", "")).encode("latin-1")
            body = b"" if is_head else reply.body[: reply.n_bytes_sent]
            if len(body) < 1 << 16:
                self.wfile.write(head + bytes(body))
            else:
                self.wfile.write(head)
                self.wfile.write(body)

    return Connection


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
