"""Request log of one load worker: JSON lines, readable while it grows.

    {"start": {"at": <unix time of the schedule's zero>, "worker": <its name>,
               "ahead": <seconds of its clock before the master's>, "within": <± seconds, or null>}}
    [number, intended, sent, first_token, end,
     outcome, status, prompt_tokens, completion_tokens, error, class, cached]     (on one line)
    {"tick": {"sent": <requests sent so far>, "busy": <CPU seconds so far>}}
    {"end": {"stopped_at": <seconds, or null>, "gaps": <HDR histogram of inter-token gaps>,
             "requests": <number of the lines above that are requests>}}

Times are seconds since the schedule's zero, null where there is none; `number` is the request's
place in the schedule. A log without its end line is of a worker that did not end by itself.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vllm_rollout.model.load_result import RequestOutcome, RequestRecord

LOG_NAME = "worker-{index}.jsonl"
STOP_NAME = "stop"
"""A file of this name among the logs tells the workers to send no more."""
_MICROSECONDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNode:
    """Machine of a worker, and the offset of its clock.

    It is `clock_ahead_seconds` before that of the master, give or take `clock_within_seconds`,
    which is infinite where nothing is known.
    """

    name: str = ""
    clock_ahead_seconds: float = 0.0
    clock_within_seconds: float = 0.0


class LogWriter:
    """Writes the log of one worker. Lines reach the file at `tick` and `end`, or when many wait."""

    def __init__(self, path: Path, *, started_at: float, node: WorkerNode | None = None) -> None:
        node = node or WorkerNode()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=1 << 16)
        self._requests = 0
        start = {
            "at": started_at,
            "worker": node.name,
            "ahead": _to_json(node.clock_ahead_seconds),
            "within": _finite(node.clock_within_seconds),
        }
        self._write({"start": start})
        self._file.flush()

    def record(self, number: int, record: RequestRecord) -> None:
        """Write one finished request."""
        self._requests += 1
        times = (record.intended, record.sent, record.first_token, record.end)
        self._write(
            [
                number,
                *(_to_json(time) for time in times),
                record.outcome,
                record.status,
                record.prompt_tokens,
                record.completion_tokens,
                record.error,
                record.request_class,
                record.cached,
            ]
        )

    def tick(self, *, sent: int, busy_seconds: float) -> None:
        """Write how far the worker is, and what CPU time that took."""
        self._write({"tick": {"sent": sent, "busy": _to_json(busy_seconds)}})
        self._file.flush()

    def end(self, *, stopped_at: float = math.inf, gaps: str = "") -> None:
        """Write that the worker ended by itself, and close the log.

        `stopped_at` is when it was stopped early, infinite if it was not.
        """
        stopped = _finite(stopped_at)
        self._write({"end": {"stopped_at": stopped, "gaps": gaps, "requests": self._requests}})
        self._file.close()

    def _write(self, line: Any) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")


class LogReader:
    """Follows the log of one worker.

    `started_at` is None until the worker has started, and `node` says little; `sent` and
    `busy_seconds` (NaN before the first) come from the latest tick; `stopped_at` (infinite where it
    was not stopped early), `gaps`, and how many requests were `lost` in transit, from the end;
    `unparsable` counts the lines that are none of the four.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_at: float | None = None
        self.node = WorkerNode()
        self.sent = 0
        self.busy_seconds = math.nan
        self.stopped_at = math.inf
        self.gaps = ""
        self.ended = False
        self.lost = 0
        self.unparsable = 0
        self._requests = 0
        self._offset = 0

    def read(self, *, to_the_end: bool = False) -> list[tuple[int, RequestRecord]]:
        """The requests written since the last call, with their numbers.

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
                record = self._take(msgspec.json.decode(line))
            except (ValueError, TypeError, KeyError, OverflowError):
                self.unparsable += 1
                continue
            if record is not None:
                records.append(record)
        return records

    def _take(self, line: Any) -> tuple[int, RequestRecord] | None:
        if isinstance(line, list):
            request = _decode(*line)
            self._requests += 1
            return request
        if not isinstance(line, dict):
            raise TypeError(line)
        [(kind, fields)] = line.items()
        match kind:
            case "start":
                self.started_at = float(fields["at"])
                within = fields["within"]
                self.node = WorkerNode(
                    name=str(fields["worker"]),
                    clock_ahead_seconds=float(fields["ahead"]),
                    clock_within_seconds=math.inf if within is None else float(within),
                )
            case "tick":
                self.sent = int(fields["sent"])
                self.busy_seconds = _from_json(fields["busy"])
            case "end":
                stopped = fields["stopped_at"]
                self.stopped_at = math.inf if stopped is None else float(stopped)
                self.gaps = str(fields["gaps"])
                self.lost = int(fields["requests"]) - self._requests
                self.ended = True
            case _:
                raise ValueError(kind)
        return None


def log_digest(path: Path) -> str:
    """SHA-256 of a whole log, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else round(value, _MICROSECONDS)


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, _MICROSECONDS) if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _decode(
    number: int,
    intended: float,
    sent: float | None,
    first_token: float | None,
    end: float | None,
    outcome: str,
    status: int,
    prompt_tokens: int,
    completion_tokens: int,
    error: str,
    request_class: str,
    cached: str,
) -> tuple[int, RequestRecord]:
    return int(number), RequestRecord(
        intended=float(intended),
        sent=_from_json(sent),
        first_token=_from_json(first_token),
        end=_from_json(end),
        outcome=RequestOutcome(outcome),
        status=int(status),
        prompt_tokens=int(prompt_tokens),
        completion_tokens=int(completion_tokens),
        error=str(error),
        request_class=str(request_class),
        cached=str(cached),
    )
