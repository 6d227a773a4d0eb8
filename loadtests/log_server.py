"""Log server of the master: the judging machine fetches the logs here, and stops the load.

HTTP on loopback: in a cluster only those reach it whom the API server lets forward a port.

    GET  /state          what there is (JSON), and the master's time
    GET  /logs/I?from=N  the log of worker I from byte N on, as far as it is known
    POST /stop           send no more requests
    POST /fetched        everything is fetched: the master may end
    GET  /attended       how long ago any of the above was asked, which asking this does not change

A master that nobody asks ends the load: whoever started it is gone.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gevent
from gevent.pywsgi import WSGIServer

from loadtests.log_relay import MasterRelay
from vllm_rollout import __version__
from vllm_rollout.load.request_log import LOG_NAME

_MOST_BYTES = 1 << 22
_LOOK_SECONDS = 0.5
_LOG_PATH = re.compile(r"/logs/(\d{1,6})")
_log = logging.getLogger(__name__)

_Answer = tuple[str, bytes]


class LogServer:
    """Serves what `relay` has put into `folder`, on 127.0.0.1:`port`.

    `on_unattended` is called once when nobody has asked for `unattended_seconds`.
    """

    def __init__(
        self,
        relay: MasterRelay,
        folder: Path,
        *,
        port: int,
        unattended_seconds: float,
        on_unattended: Callable[[], None],
    ) -> None:
        self._relay = relay
        self._folder = folder
        self._unattended_seconds = unattended_seconds
        self._on_unattended = on_unattended
        self._asked = time.monotonic()
        self._ended = False
        self._fetched = False
        server = WSGIServer(("127.0.0.1", port), self._answer, log=None)
        server.start()
        gevent.spawn(self._watch)

    def wait(self, **_: Any) -> None:
        """Say that the run is over, and wait until everything is fetched or nobody asks."""
        self._ended = True
        while not self._fetched and not self._unattended:
            gevent.sleep(_LOOK_SECONDS)

    @property
    def _unattended(self) -> bool:
        return time.monotonic() - self._asked > self._unattended_seconds

    def _watch(self) -> None:
        while not self._unattended:
            gevent.sleep(_LOOK_SECONDS)
        _log.error("nobody has asked for results for %g s: ending", self._unattended_seconds)
        self._on_unattended()

    def _answer(
        self, request: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], Any]
    ) -> Iterable[bytes]:
        try:
            status, body = self._route(request["REQUEST_METHOD"], request)
        except (OSError, ValueError) as error:
            status, body = "404 Not Found", str(error).encode()
        start(status, [("Content-Length", str(len(body)))])
        return [body]

    def _route(self, method: str, request: dict[str, Any]) -> _Answer:
        path = request["PATH_INFO"]
        if (method, path) == ("GET", "/attended"):
            return _json({"seconds_ago": time.monotonic() - self._asked})
        self._asked = time.monotonic()
        match method, path:
            case "GET", "/state":
                state = "ended" if self._ended else "running"
                logs = self._relay.state()
                return _json(
                    {"version": __version__, "now": time.time(), "state": state, "logs": logs}
                )
            case "POST", "/stop":
                self._relay.stop()
                return _json({})
            case "POST", "/fetched":
                self._fetched = True
                return _json({})
        found = _LOG_PATH.fullmatch(path)
        if method != "GET" or found is None:
            raise ValueError(f"no such thing: {method} {path}")
        offset = int(parse_qs(request["QUERY_STRING"]).get("from", ["0"])[0])
        with (self._folder / LOG_NAME.format(index=int(found[1]))).open("rb") as file:
            file.seek(offset)
            return "200 OK", file.read(_MOST_BYTES)


def _json(content: Any) -> _Answer:
    return "200 OK", json.dumps(content, allow_nan=False).encode()
