"""Cloud Storage over HTTP on this machine: the part of its JSON API that Beam uses.

Objects are in memory. `STORAGE_EMULATOR_HOST` makes Google's client use the server.
"""

import base64
import dataclasses
import email
import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

import google_crc32c
import pytest
from apache_beam.internal.gcp import auth

from tests.support.local_server import LocalServer

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")
_OBJECTS = re.compile(r"(?:/upload)?/storage/v1/b/(?P<bucket>[^/]+)/o")
_REWRITE = re.compile(
    _OBJECT.pattern + r"/(?:copyTo|rewriteTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to>[^/]+)"
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = re.compile(r"bytes (?:\d+-(?P<last>\d+)|\*)/(?P<total>\d+|\*)")
_UPDATED = "2026-01-02T03:04:05.000Z"
_PAGE = 7  # objects: few, so that listings have several pages


@dataclasses.dataclass(frozen=True)
class Request:
    """One request, of its own or a part of a batch."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Self:
        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        return cls(method, parts.path, query, headers, body)


@dataclasses.dataclass(frozen=True)
class Reply:
    """A status, a body and headers."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def json(cls, content: Any) -> Self:
        return cls(200, json.dumps(content).encode(), {"Content-Type": "text/json"})


class FakeGcs(LocalServer):
    """Keeps objects by bucket and name, and counts requests by method and verb."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.requests: list[Request] = []
        self._uploads: dict[str, tuple[tuple[str, str], bytearray]] = {}
        self._lock = threading.Lock()
        super().__init__(_handler(self))

    def lead_beam_here(self, patch: pytest.MonkeyPatch) -> None:
        """Without credentials, which it would look for on the network."""
        patch.setenv("STORAGE_EMULATOR_HOST", self.url)
        patch.setattr(auth._Credentials, "_credentials", None)
        patch.setattr(auth._Credentials, "_credentials_init", True)

    def reply(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            return self._reply(request)

    def _reply(self, request: Request) -> Reply:
        if request.path.startswith("/batch/"):
            return self._batch(request)
        if match := _REWRITE.fullmatch(request.path):
            return self._copy(match)
        if match := _OBJECT.fullmatch(request.path):
            return self._object(request, _key(match["bucket"], match["name"]))
        if match := _OBJECTS.fullmatch(request.path):
            if request.path.startswith("/upload/"):
                return self._upload(request, match["bucket"])
            return self._list(request, match["bucket"])
        return Reply(501, f"{request.method} {request.path}".encode())

    def _object(self, request: Request, key: tuple[str, str]) -> Reply:
        if key not in self.objects:
            return Reply(404, b"{}")
        if request.method == "DELETE":
            del self.objects[key]
            return Reply(204)
        if request.query.get("alt") != "media":
            return Reply.json(self._resource(key))
        data = self.objects[key]
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        if match is None:
            return Reply(200, data)
        start = int(match[1])
        stop = min(int(match[2]) + 1 if match[2] else len(data), len(data))
        if start >= len(data):
            return Reply(416)
        found = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return Reply(206, data[start:stop], found)

    def _list(self, request: Request, bucket: str) -> Reply:
        prefix = request.query.get("prefix", "")
        first = request.query.get("pageToken", "")
        keys = sorted(
            key
            for key in self.objects
            if key[0] == bucket and key[1].startswith(prefix) and key[1] > first
        )
        page = keys[:_PAGE]
        content: dict[str, Any] = {"items": [self._resource(key) for key in page]}
        if len(keys) > _PAGE:
            content["nextPageToken"] = page[-1][1]
        return Reply.json(content)

    def _copy(self, match: re.Match) -> Reply:
        source = _key(match["bucket"], match["name"])
        if source not in self.objects:
            return Reply(404, b"{}")
        target = _key(match["to_bucket"], match["to"])
        self.objects[target] = self.objects[source]
        return Reply.json({"done": True, "resource": self._resource(target)})

    def _upload(self, request: Request, bucket: str) -> Reply:
        """A resumable upload: the object is there when the last chunk is."""
        if request.method == "POST":
            name = request.query.get("name") or json.loads(request.body)["name"]
            number = str(len(self._uploads))
            self._uploads[number] = ((bucket, name), bytearray())
            place = f"{self.url}{request.path}?upload_id={number}"
            return Reply(200, headers={"Location": place})
        key, data = self._uploads[request.query["upload_id"]]
        data += request.body
        chunk = _CHUNK.fullmatch(request.headers["content-range"])
        if chunk is None or chunk["total"] == "*":
            return Reply(308, headers={"Range": f"bytes=0-{len(data) - 1}"})
        self.objects[key] = bytes(data)
        return Reply.json(self._resource(key))

    def _batch(self, request: Request) -> Reply:
        kind = request.headers["content-type"]
        message = email.message_from_bytes(
            f"Content-Type: {kind}\r\n\r\n".encode() + request.body
        )
        parts = []
        for part in message.get_payload():
            line, _, rest = part.get_payload().partition("\n")
            method, url, _ = line.split(" ", 2)
            reply = self._reply(Request.of(method, url, {}, rest.encode()))
            parts.append(
                "--b\r\nContent-Type: application/http\r\n\r\n"
                f"HTTP/1.1 {reply.status} -\r\nContent-Type: application/json\r\n\r\n"
                f"{reply.body.decode()}\r\n"
            )
        body = "".join((*parts, "--b--\r\n")).encode()
        return Reply(200, body, {"Content-Type": 'multipart/mixed; boundary="b"'})

    def _resource(self, key: tuple[str, str]) -> dict[str, Any]:
        data = self.objects[key]
        checksum = google_crc32c.Checksum(data).digest()
        return {
            "bucket": key[0],
            "name": key[1],
            "size": str(len(data)),
            "updated": _UPDATED,
            "generation": str(zlib.crc32(data)),
            "crc32c": base64.b64encode(checksum).decode(),
        }


def _key(bucket: str, name: str) -> tuple[str, str]:
    return urllib.parse.unquote(bucket), urllib.parse.unquote(name)


def _handler(gcs: FakeGcs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = gcs.reply(Request.of(self.command, self.path, headers, body))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 (of http.server)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler
