"""Brings the workers' request logs to the master, where workers have no folder in common with it.

The master asks each worker for what follows the bytes it has, over Locust's own channel, until the
worker says that its log is whole and what it digests to. A message that is lost is asked for again,
so a network that was cut for a while loses nothing. Workers ask the master what time it has.
"""

import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from locust.exception import RPCError

from vllm_rollout.load.request_log import LOG_NAME, STOP_NAME, WorkerNode, log_digest

POD = "VLLM_ROLLOUT_POD"
"""Environment variable with the name of the pod that a worker runs in."""
_WANT, _PIECE, _STOP, _CLOCK = "log_want", "log_piece", "log_stop", "log_clock"
_PIECE_BYTES = 1 << 18
_ASK_SECONDS = 0.5
_CLOCK_SECONDS = 0.5
_log = logging.getLogger(__name__)


class WorkerRelay:
    """A worker's end: gives its log out, and compares its clock with the master's until it starts.

    `folder` is where the log is written.
    """

    def __init__(self, runner: Any, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self._path: Path | None = None
        self._whole = False
        self._node = WorkerNode(
            name=os.environ.get(POD) or socket.gethostname(),
            clock_ahead_seconds=0.0,
            clock_within_seconds=None,
        )
        runner.register_message(_WANT, self._give)
        runner.register_message(_STOP, self._stop)
        runner.register_message(_CLOCK, self._compare)
        self._asking = gevent.spawn(self._ask_the_time)

    def node(self) -> WorkerNode:
        """Return this worker's node as it is known; it is not asked for any further."""
        self._asking.kill()
        return self._node

    def start(self, index: int) -> None:
        """Give out the log of worker `index`, which exists now."""
        self._path = self._folder / LOG_NAME.format(index=index)

    def end(self) -> None:
        """Nothing is written to the log any more."""
        self._whole = True

    def _give(self, msg: Any, **_: Any) -> None:
        if self._path is None:
            return
        offset = int(msg.data["offset"])
        whole = self._whole  # before reading: what is written later is not in this piece
        with self._path.open("rb") as file:
            file.seek(offset)
            data = file.read(_PIECE_BYTES)
            size = file.seek(0, 2)
        piece: dict[str, Any] = {"offset": offset, "data": data}
        if whole and offset + len(data) == size:
            piece["sha256"] = log_digest(self._path)
        self._send(_PIECE, piece)

    def _stop(self, **_: Any) -> None:
        (self._folder / STOP_NAME).touch()

    def _ask_the_time(self) -> None:
        while True:
            self._send(_CLOCK, {"asked": time.monotonic(), "worker": self._node.name})
            gevent.sleep(_CLOCK_SECONDS)

    def _compare(self, msg: Any, **_: Any) -> None:
        """The master's time lies between asking and its answer; the quickest answer counts."""
        within = (time.monotonic() - msg.data["asked"]) / 2
        best = self._node.clock_within_seconds
        if best is None or within < best:
            self._node = WorkerNode(
                name=self._node.name,
                clock_ahead_seconds=time.time() - within - msg.data["now"],
                clock_within_seconds=within,
            )

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        try:
            self._runner.send_message(kind, data)
        except RPCError as error:  # what is lost is asked for again
            _log.warning("cannot reach the master: %s", error)


@dataclass(slots=True)
class _Fetched:
    """How far the master is with one worker's log."""

    worker: str
    path: Path
    heard: float
    size: int = 0
    sha256: str = ""


class MasterRelay:
    """The master's end: asks for the logs and writes them to `folder`, byte for byte."""

    def __init__(self, runner: Any, folder: Path) -> None:
        self._runner = runner
        self._folder = folder
        self._logs: dict[str, _Fetched] = {}
        self._names: dict[str, str] = {}
        runner.register_message(_PIECE, self._take)
        runner.register_message(_CLOCK, self._tell_the_time)

    def start(self, workers: list[str]) -> None:
        """Fetch the logs of these workers (Locust's client ids), in the order of their indices."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for index, worker in enumerate(workers):
            path = self._folder / LOG_NAME.format(index=index)
            path.write_bytes(b"")
            self._logs[worker] = _Fetched(worker, path, time.monotonic())
            gevent.spawn(self._ask, self._logs[worker])

    def stop(self) -> None:
        """Tell the workers to send no more requests."""
        self._runner.send_message(_STOP)

    def awaited(self, patience_seconds: float) -> bool:
        """Return True if a log is not whole and its worker was heard of not long ago."""
        heard = time.monotonic() - patience_seconds
        return any(not log.sha256 and log.heard > heard for log in self._logs.values())

    def state(self) -> list[dict[str, Any]]:
        """Return each worker's name, bytes fetched, digest of the whole log, and silence."""
        now = time.monotonic()
        return [
            {
                "worker": self._names.get(log.worker, log.worker),
                "size": log.size,
                "sha256": log.sha256,
                "silent_seconds": 0.0 if log.sha256 else now - log.heard,
            }
            for log in self._logs.values()
        ]

    def _ask(self, log: _Fetched) -> None:
        while not log.sha256:
            try:
                self._want(log)
            except RPCError as error:
                _log.warning("cannot reach %s: %s", log.worker, error)
            gevent.sleep(_ASK_SECONDS)

    def _want(self, log: _Fetched) -> None:
        self._runner.send_message(_WANT, {"offset": log.size}, log.worker)

    def _take(self, msg: Any, **_: Any) -> None:
        log = self._logs.get(msg.node_id)
        if log is None:
            return
        log.heard = time.monotonic()
        data = msg.data["data"]
        # An answer that was overtaken by that to a later question has nothing new.
        if msg.data["offset"] != log.size or log.sha256:
            return
        with log.path.open("ab") as file:
            file.write(data)
        log.size += len(data)
        log.sha256 = msg.data.get("sha256", "")
        if len(data) == _PIECE_BYTES and not log.sha256:
            self._want(log)

    def _tell_the_time(self, msg: Any, **_: Any) -> None:
        self._names[msg.node_id] = str(msg.data["worker"])
        answer = {"asked": msg.data["asked"], "now": time.time()}
        self._runner.send_message(_CLOCK, answer, msg.node_id)
