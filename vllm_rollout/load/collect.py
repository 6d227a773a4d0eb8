"""Collects what the workers of a load run have logged, and makes the result of it.

Every arrival of the schedule is in the result: one without a record counts as not sent.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from vllm_rollout.load.arrivals import arrivals
from vllm_rollout.load.itl_histogram import merged
from vllm_rollout.load.load_progress import LoadProgress, ProgressMeter
from vllm_rollout.load.request_log import LOG_NAME, STOP_NAME, LogReader
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import ItlSummary, LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.model.units import counted, of_total

_NO_RECORD = "no record"
_CLOCK_WITHIN_SECONDS = 0.25
"""Accuracy to which the workers' clocks must be known for their starts to count as simultaneous."""


class LoadCollector:
    """Follows the logs that the workers of `plan` write to `folder`. Logs of an earlier run go.

    `clock_ahead_seconds` is by how much the clock that they go by is before this machine's.
    """

    def __init__(self, plan: LoadPlan, folder: Path) -> None:
        self._plan = plan
        self._schedule = [] if plan.closed else list(arrivals(plan))
        self._records: dict[int, RequestRecord] = {}
        self._next = 0
        self.clock_ahead_seconds = 0.0
        self._meter = ProgressMeter(plan, schedule=self._schedule)
        self._stop_file = folder / STOP_NAME
        self._stop_file.unlink(missing_ok=True)
        self._logs = [
            LogReader(folder / LOG_NAME.format(index=index)) for index in range(plan.workers)
        ]
        for log in self._logs:
            log.path.unlink(missing_ok=True)

    @property
    def started_at(self) -> float | None:
        """Unix time of the schedule's zero, by the clock here; None until a worker logged it."""
        started = next((log.started_at for log in self._logs if log.started_at is not None), None)
        return None if started is None else started - self.clock_ahead_seconds

    def read(self, *, to_the_end: bool = False) -> None:
        """Take in what was logged since the last call; `to_the_end` when nobody logs any more."""
        for log in self._logs:
            records = log.read(to_the_end=to_the_end)
            self._records.update((record.number, record) for record in records)
            self._meter.add(records)

    def next_in_order(self) -> Iterator[RequestRecord]:
        """The judged requests that have ended and follow the last one given, without a gap."""
        while (record := self._records.get(self._next)) is not None:
            self._next += 1
            if record.intended >= self._plan.warmup_seconds:
                yield record

    def stop(self) -> None:
        """Stop the workers from sending more. Requests already sent are waited for as usual."""
        self._stop_file.touch()

    def progress(self, *, elapsed_seconds: float) -> LoadProgress:
        """Return the progress `elapsed_seconds` after the schedule's zero."""
        return self._meter.progress(
            elapsed_seconds=elapsed_seconds,
            sent=sum(log.sent for log in self._logs),
            busy_seconds=max(
                (log.busy_seconds for log in self._logs if log.busy_seconds is not None),
                default=None,
            ),
        )

    def result(self, *, problem: str = "") -> LoadResult:
        """The judged requests; incomplete for `problem` and for whatever the logs lack."""
        end = min(
            (log.stopped_at for log in self._logs if log.stopped_at is not None), default=math.inf
        )
        requests = self._requests_before(end)
        judged = tuple(r for r in requests if r.intended >= self._plan.warmup_seconds)
        unsent = [request for request in requests if request.outcome is RequestOutcome.UNSENT]
        why = next((f": {r.error}" for r in unsent if r.error not in ("", _NO_RECORD)), "")
        unended = [_name(i, log) for i, log in enumerate(self._logs) if not log.ended]
        strangers = [
            _name(index, log)
            for index, log in enumerate(self._logs)
            if (within := log.node.clock_within_seconds) is None or within > _CLOCK_WITHIN_SECONDS
        ]
        lost = sum(log.lost for log in self._logs)
        unparsable = sum(log.unparsable for log in self._logs)
        gaps, broken = self._gaps()
        cached = [request.cached for request in judged if request.cached]
        problems = {
            problem: problem != "",
            f"only {len(self._logs) - len(unended)} of {len(self._logs)} load workers ended by "
            f"themselves, not {', '.join(unended)}": bool(unended),
            f"when {', '.join(strangers)} started is not known to {_CLOCK_WITHIN_SECONDS:g} s: its "
            "clock could not be compared with the master's": bool(strangers),
            f"{of_total(len(unsent), len(requests), 'request')} not sent or without a record"
            f"{why}": bool(unsent),
            f"{counted(lost, 'finished request')} missing from the request log": lost != 0,
            f"{counted(unparsable, 'line')} of the request log cannot be read": unparsable > 0,
            broken: broken != "",
            f"{of_total(len(cached), len(judged), 'answer')} came from a cache, not from the "
            f"engine ({next(iter(cached), '')})": bool(cached),
            "the schedule holds no request": not judged,
        }
        busy = [log.busy_seconds for log in self._logs if log.busy_seconds is not None]
        measured = len(busy) == len(self._logs)
        last_end = max((r.end for r in requests if r.end is not None), default=0.0)
        seconds = max(last_end, min(end, self._plan.total_seconds))
        return LoadResult(
            plan=self._plan,
            started_at=self.started_at,
            requests=judged,
            incomplete="; ".join(text for text, found in problems.items() if found),
            unended=tuple(unended),
            stopped_after_seconds=max(0.0, end - self._plan.warmup_seconds),
            generator_cpu=max(busy) / seconds if measured and seconds > 0 else None,
            generator_seconds=sum(busy) if measured else None,
            gaps=gaps,
        )

    def _requests_before(self, end: float) -> list[RequestRecord]:
        """All requests due before `end`, in order; one that is missing was not sent."""
        if self._plan.closed:
            records = sorted(self._records.values(), key=lambda record: record.intended)
            return [record for record in records if record.intended < end]
        due = itertools.takewhile(lambda each: each[1] < end, enumerate(self._schedule))
        return [
            self._records.get(number)
            or RequestRecord(
                number=number, intended=intended, outcome=RequestOutcome.UNSENT, error=_NO_RECORD
            )
            for number, intended in due
        ]

    def _gaps(self) -> tuple[ItlSummary, str]:
        """The gaps of all workers, and what is wrong with them."""
        try:
            unknown = sum(log.unknown_gaps for log in self._logs)
            return merged((log.gaps for log in self._logs), unknown=unknown), ""
        except ValueError as error:
            return ItlSummary(), f"the inter-token gaps cannot be read: {error}"


def _name(index: int, log: LogReader) -> str:
    """Return a worker's name in messages."""
    return f"worker {index} ({log.node.name or 'which sent nothing'})"
