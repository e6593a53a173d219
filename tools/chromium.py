"""A headless Chromium, driven through the DevTools protocol over a local socket."""

import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
_WAIT_S = 30.0


def executable() -> str | None:
    """The path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One page of the browser; `said` collects what it writes to its console."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.said: list[str] = []
        self.session = ""
        self._is_loaded = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self._socket.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; keeps what is written to the console."""
        answer = json.loads(self._socket.recv(timeout=_WAIT_S))
        params = answer.get("params", {})
        match answer.get("method"):
            case "Runtime.consoleAPICalled":
                self.said.append(json.dumps(params["args"]))
            case "Runtime.exceptionThrown":
                self.said.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.said.append(params["entry"]["text"])
            case "Page.javascriptDialogOpening":
                self.said.append(f"dialog: {params['message']}")
            case "Page.loadEventFired":
                self._is_loaded = True
        return answer

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        self._is_loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._is_loaded:
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Presses a key that types no character: `Tab`, `ArrowRight`."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    def resize(self, width: int, height: int = 900) -> None:
        """Sets the size of the window, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, is_dark: bool) -> None:
        """Asks for the dark or the light color scheme."""
        feature = {
            "name": "prefers-color-scheme",
            "value": "dark" if is_dark else "light",
        }
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        found = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole
        )
        return base64.b64decode(found["data"])

    def screenshot_of(self, selector: str, max_height: int) -> bytes:
        """A PNG of an element, cut off at `max_height` CSS pixels."""
        box = self.run(
            f"""(() => {{
              const box = document.querySelector("{selector}").getBoundingClientRect();
              return [box.x + scrollX, box.y + scrollY, box.width, box.height];
            }})()"""
        )
        x, y, width, height = box
        height = min(height, max_height)
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip=clip,
        )
        return base64.b64decode(found["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Starts a browser with a new profile and yields its page."""
    command = [executable() or _NAMES[0], *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [*command, "--remote-debugging-port=0", "about:blank"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with connect(_address(process), max_size=None, proxy=None) as socket:
            page = Page(socket)
            targets = page.call("Target.getTargets")["targetInfos"]
            target = next(t for t in targets if t["type"] == "page")
            attached = page.call(
                "Target.attachToTarget", targetId=target["targetId"], flatten=True
            )
            page.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                page.call(f"{domain}.enable")
            yield page
    finally:
        process.terminate()
        process.wait(timeout=_WAIT_S)


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the browser prints once it listens."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise AssertionError("Chromium ended before it listened")
