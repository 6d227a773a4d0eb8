"""A page in a real browser that is asked again and again: by DevTools messages over a pipe."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.browser import browser_command

_DEADLINE_SECONDS = 90.0


class Page:
    """One page. Every call waits for the browser's answer, and for no time."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._session = ""
        self._number = 0
        self._rest = b""
        self._loaded: set[str] = set()
        self._deadline = 0.0
        self.requested: list[str] = []
        """Every address that the page has asked for."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self(f"{domain}.enable")
        self("Page.setLifecycleEventsEnabled", enabled=True)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._number += 1
        self._deadline = time.monotonic() + _DEADLINE_SECONDS
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Load `url` whole."""
        for each in ("about:blank", url):  # so that another part of the same page is loaded, too
            self._loaded.clear()
            loader = self("Page.navigate", url=each)["loaderId"]
            while loader not in self._loaded:
                self._message()

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript; a promise's when it is there."""
        answer = self(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def size(self, width: int, height: int = 900) -> None:
        """Make the window so large; a narrow one is a phone's."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def colours(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", features=features)

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = max(self._deadline - time.monotonic(), 0)
            readable, _, _ = select.select([self._receive], [], [], left)
            if not readable:
                raise TimeoutError("the browser does not answer")
            more = os.read(self._receive, 1 << 20)
            if not more:
                raise EOFError("the browser has ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        about = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        if message.get("method") == "Page.lifecycleEvent" and about["name"] == "load":
            self._loaded.add(about["loaderId"])
        return message


@contextmanager
def page_in_browser(profile: Path) -> Iterator[Page]:
    """Start a browser with one page, and end it. A missing one skips the test, or fails it where
    all is required."""
    started = browser_command(profile, "--hide-scrollbars", "--remote-debugging-pipe")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [
        "bash",  # dash knows no number above 9
        "-c",
        f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}',  # where the browser looks for its pipes
        "bash",
        *started,
    ]
    with subprocess.Popen(
        command,
        pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(ours_out, ours_in)
        finally:
            os.close(ours_out)  # which ends it
            os.close(ours_in)
            browser.terminate()
            try:
                browser.wait(20)
            except subprocess.TimeoutExpired:
                browser.kill()
