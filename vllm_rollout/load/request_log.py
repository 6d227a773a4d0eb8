"""Request log of one load worker: JSON lines, readable while it grows.

    {"line": "start", "at": <unix time of the schedule's zero>, "node": {…}}    a `WorkerNode`
    [number, intended, sent, …]                                                a `RequestRecord`
    {"line": "tick", "sent": <requests sent so far>, "busy_seconds": <CPU seconds so far>}
    {"line": "end", "stopped_at": <seconds, or null>, "gaps": <HDR histogram of inter-token gaps>,
     "unknown_gaps": <number of those that are not known>,
     "requests": <number of the lines above that are requests>}

Times are seconds since the schedule's zero. A log without its end line is of a worker that did not
end by itself.
"""

import hashlib
from pathlib import Path

from msgspec import Struct, json

from vllm_rollout.model.load_result import RequestRecord

LOG_NAME = "worker-{index}.jsonl"
STOP_NAME = "stop"
"""A file of this name among the logs tells the workers to send no more."""


class WorkerNode(Struct, frozen=True, kw_only=True):
    """Machine of a worker, and the offset of its clock.

    It is `clock_ahead_seconds` before that of the master, give or take `clock_within_seconds`,
    which is None where nothing is known.
    """

    name: str = ""
    clock_ahead_seconds: float = 0.0
    clock_within_seconds: float | None = 0.0


class _Start(Struct, tag_field="line", tag="start", frozen=True):
    at: float
    node: WorkerNode


class _Tick(Struct, tag_field="line", tag="tick", frozen=True):
    sent: int
    busy_seconds: float


class _End(Struct, tag_field="line", tag="end", frozen=True):
    stopped_at: float | None
    gaps: str
    unknown_gaps: int
    requests: int


_ENCODER = json.Encoder()
_REQUEST = json.Decoder(RequestRecord)
_OTHER = json.Decoder(_Start | _Tick | _End)


class LogWriter:
    """Writes the log of one worker. Lines reach the file at `tick` and `end`, or when many wait."""

    def __init__(self, path: Path, *, started_at: float, node: WorkerNode | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=1 << 16)
        self._requests = 0
        self._write(_Start(started_at, node or WorkerNode()))
        self._file.flush()

    def record(self, record: RequestRecord) -> None:
        """Write one finished request."""
        self._requests += 1
        self._write(record)

    def tick(self, *, sent: int, busy_seconds: float) -> None:
        """Write how far the worker is, and what CPU time that took."""
        self._write(_Tick(sent, busy_seconds))
        self._file.flush()

    def end(
        self, *, stopped_at: float | None = None, gaps: str = "", unknown_gaps: int = 0
    ) -> None:
        """Write that the worker ended by itself, and close the log.

        `stopped_at` is when it was stopped early, None if it was not.
        """
        self._write(_End(stopped_at, gaps, unknown_gaps, self._requests))
        self._file.close()

    def _write(self, line: RequestRecord | _Start | _Tick | _End) -> None:
        self._file.write(_ENCODER.encode(line) + b"\n")


class LogReader:
    """Follows the log of one worker.

    `started_at` is None until the worker has started, and `node` says little; `sent` and
    `busy_seconds` (None before the first) come from the latest tick; `stopped_at` (None where it
    was not stopped early), `gaps` and `unknown_gaps`, and how many requests were `lost` in transit,
    from the end; `unparsable` counts the lines that are none of the four.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_at: float | None = None
        self.node = WorkerNode()
        self.sent = 0
        self.busy_seconds: float | None = None
        self.stopped_at: float | None = None
        self.gaps, self.unknown_gaps = "", 0
        self.ended = False
        self.lost = 0
        self.unparsable = 0
        self._requests = 0
        self._offset = 0

    def read(self, *, to_the_end: bool = False) -> list[RequestRecord]:
        """The requests written since the last call.

        A last line without its newline is left for the next call, or with `to_the_end` (nobody
        writes any more) counted as unparsable.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole, newline, rest = new.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        self.unparsable += bool(rest) and to_the_end
        records = []
        for line in whole.split(b"\n") if newline else []:
            try:
                if line.startswith(b"["):
                    records.append(_REQUEST.decode(line))
                    self._requests += 1
                else:
                    self._take(_OTHER.decode(line))
            except (ValueError, RecursionError):
                self.unparsable += 1
        return records

    def _take(self, line: _Start | _Tick | _End) -> None:
        match line:
            case _Start():
                self.started_at, self.node = line.at, line.node
            case _Tick():
                self.sent, self.busy_seconds = line.sent, line.busy_seconds
            case _End():
                self.stopped_at = line.stopped_at
                self.gaps, self.unknown_gaps = line.gaps, line.unknown_gaps
                self.lost = line.requests - self._requests
                self.ended = True


def log_digest(path: Path) -> str:
    """SHA-256 of a whole log, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
