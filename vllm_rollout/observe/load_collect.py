"""Collects what the workers of a load run have logged, and makes the result of it.

Every arrival of the schedule is in the result: one without a record counts as not sent.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from vllm_rollout.observe.arrivals import arrivals
from vllm_rollout.observe.gaps import GapSummary, merged
from vllm_rollout.observe.load import LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.observe.load_log import LOG_NAME, STOP_NAME, LogReader
from vllm_rollout.observe.load_plan import LoadPlan
from vllm_rollout.observe.load_progress import LoadProgress, ProgressMeter


class LoadCollector:
    """Follows the logs that the workers of `plan` write to `folder`. Logs of an earlier run go."""

    def __init__(self, plan: LoadPlan, folder: Path) -> None:
        self._plan = plan
        self._schedule = [] if plan.closed else list(arrivals(plan))
        self._records: dict[int, RequestRecord] = {}
        self._next = 0
        self._meter = ProgressMeter(plan, planned=len(self._schedule))
        self._stop_file = folder / STOP_NAME
        self._stop_file.unlink(missing_ok=True)
        self._logs = [
            LogReader(folder / LOG_NAME.format(index=index)) for index in range(plan.workers)
        ]
        for log in self._logs:
            log.path.unlink(missing_ok=True)

    @property
    def started_at(self) -> float | None:
        """Unix time of the schedule's zero; None until a worker has logged it."""
        return next((log.started_at for log in self._logs if log.started_at is not None), None)

    def read(self, *, to_the_end: bool = False) -> None:
        """Take in what was logged since the last call; `to_the_end` when nobody logs any more."""
        for log in self._logs:
            records = dict(log.read(to_the_end=to_the_end))
            self._records |= records
            self._meter.add(records.values())

    def next_in_order(self) -> Iterator[RequestRecord]:
        """The judged requests that have ended and follow the last one given, without a gap."""
        while (record := self._records.get(self._next)) is not None:
            self._next += 1
            if record.intended >= self._plan.warmup_seconds:
                yield record

    def stop(self) -> None:
        """Tell the workers to send no more. What was sent is waited for as ever."""
        self._stop_file.touch()

    def progress(self, *, elapsed_seconds: float) -> LoadProgress:
        """How things stand `elapsed_seconds` after the schedule's zero."""
        return self._meter.progress(
            elapsed_seconds=elapsed_seconds, sent=sum(log.sent for log in self._logs)
        )

    def result(self, *, problem: str = "") -> LoadResult:
        """The judged requests; incomplete for `problem` and for whatever the logs lack."""
        end = min(log.stopped_at for log in self._logs)
        requests = self._requests_before(end)
        judged = tuple(r for r in requests if r.intended >= self._plan.warmup_seconds)
        unsent = sum(request.outcome is RequestOutcome.UNSENT for request in requests)
        ended = sum(log.ended for log in self._logs)
        unparsable = sum(log.unparsable for log in self._logs)
        gaps, broken = self._gaps()
        problems = {
            problem: problem != "",
            f"only {ended} of {len(self._logs)} load workers ended by themselves": ended
            < len(self._logs),
            f"{unsent} of {len(requests)} requests were not sent or left no record": unsent > 0,
            f"{unparsable} lines of the request log cannot be read": unparsable > 0,
            broken: broken != "",
            "the schedule holds no request": not judged,
        }
        busy = [log.busy_seconds for log in self._logs]
        seconds = min(end, self._plan.total_seconds)
        return LoadResult(
            plan=self._plan,
            started_at=math.nan if self.started_at is None else self.started_at,
            requests=judged,
            incomplete="; ".join(text for text, found in problems.items() if found),
            stopped_after_seconds=max(0.0, end - self._plan.warmup_seconds),
            generator_cpu=max(busy) / seconds if seconds > 0 else math.nan,
            generator_seconds=sum(busy),
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
            or RequestRecord(intended=intended, outcome=RequestOutcome.UNSENT, error="no record")
            for number, intended in due
        ]

    def _gaps(self) -> tuple[GapSummary, str]:
        """The gaps of all workers, and what is wrong with them."""
        try:
            return merged(log.gaps for log in self._logs), ""
        except ValueError as error:
            return GapSummary(), f"the inter-token gaps cannot be read: {error}"
