"""An HTTP server on a port of this machine, for as long as a `with` block."""

import contextlib
import socket
import socketserver
import threading
from http.server import ThreadingHTTPServer
from typing import Any, Self


class LocalServer:
    """Starts with the block and ends with it; subclasses keep what they serve."""

    def __init__(
        self, handler: type[socketserver.StreamRequestHandler], port: int = 0
    ) -> None:
        self._server = _Server(("127.0.0.1", port), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Ends connections that clients keep open, too."""

    request_queue_size = 128  # clients with many threads connect at once

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in tuple(self._connections):
            with contextlib.suppress(OSError):  # it has just ended
                connection.shutdown(socket.SHUT_RDWR)
