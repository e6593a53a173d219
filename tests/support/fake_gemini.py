"""A server on this machine that speaks Gemini's protocol, and misbehaves on demand."""

import base64
import collections
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.local_server import LocalServer

Body = Mapping[str, Any]

DROP = object()  # the connection is closed without an answer
SLOW_S = 2.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """A status and JSON, or any text."""

    status: int
    content: Any


def said(text: str, reason: str = "STOP", **fields: Any) -> Reply:
    """An answer with one candidate; `fields` are of the candidate."""
    content = {"role": "model", "parts": [{"text": text}]} if text else {}
    candidate = {"content": content, "finishReason": reason} | fields
    usage = {"candidatesTokenCount": len(text.split())}
    return Reply(200, {"candidates": [candidate], "usageMetadata": usage})


def refused(code: int, status: str, message: str, reason: str = "") -> Reply:
    details = [{"reason": reason}] if reason else []
    error = {"code": code, "status": status, "message": message, "details": details}
    return Reply(code, {"error": error})


def texts_of(body: Body) -> list[str]:
    """The parts of a request; `<jpeg>` stands for the image."""
    (content,) = body["contents"]
    return [part.get("text", "<jpeg>") for part in content["parts"]]


def jpeg_of(body: Body) -> bytes:
    (content,) = body["contents"]
    (image,) = [part["inlineData"] for part in content["parts"] if "text" not in part]
    # The client writes this name and the URL-safe alphabet; the service takes both.
    assert image["mime_type"] == "image/jpeg"
    return base64.urlsafe_b64decode(image["data"])


class FakeGemini(LocalServer):
    """Answers by `answer(body, n_before)`; `n_before` counts equal prompts before."""

    def __init__(self, answer: Callable[[Body, int], Any]) -> None:
        self.answer = answer
        self.count_tokens = Reply(200, {"totalTokens": 1})
        self.bodies: list[Body] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self._prompt_to_n: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        super().__init__(_handler(self))

    def reply(self, path: str, body: Body, headers: Mapping[str, str]) -> Any:
        with self._lock:
            self.paths.append(path)
            self.headers.append(headers)
            if path.endswith(":countTokens"):
                return self.count_tokens
            self.bodies.append(body)
            prompt = json.dumps(body, sort_keys=True)
            n_before = self._prompt_to_n[prompt]
            self._prompt_to_n[prompt] += 1
        return self.answer(body, n_before)


def slowly(reply: Reply) -> Reply:
    time.sleep(SLOW_S)
    return reply


def _handler(gemini: FakeGemini) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = gemini.reply(self.path, body, dict(self.headers))
            if reply is DROP:
                self.close_connection = True
                return
            is_text = isinstance(reply.content, str)
            text = reply.content if is_text else json.dumps(reply.content)
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler
