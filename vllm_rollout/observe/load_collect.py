"""Collects what the workers of a load run have logged, and makes the result of it.

Every arrival of the schedule is in the result: one without a record counts as not sent.
"""

import math
from pathlib import Path

from vllm_rollout.observe.arrivals import arrivals
from vllm_rollout.observe.load import LoadPlan, LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.observe.load_log import LOG_NAME, LogReader
from vllm_rollout.observe.load_progress import LoadProgress, ProgressMeter


class LoadCollector:
    """Follows the logs that the workers of `plan` write to `folder`. Logs of an earlier run go."""

    def __init__(self, plan: LoadPlan, folder: Path) -> None:
        self._plan = plan
        self._schedule = list(arrivals(plan))
        self._records: dict[int, RequestRecord] = {}
        self._meter = ProgressMeter(plan, planned=len(self._schedule))
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

    def progress(self, *, elapsed_seconds: float) -> LoadProgress:
        """How things stand `elapsed_seconds` after the schedule's zero."""
        return self._meter.progress(
            elapsed_seconds=elapsed_seconds, sent=sum(log.sent for log in self._logs)
        )

    def result(self, *, problem: str = "") -> LoadResult:
        """The judged requests; incomplete for `problem` and for whatever the logs lack."""
        requests = [
            self._records.get(number)
            or RequestRecord(intended=intended, outcome=RequestOutcome.UNSENT, error="no record")
            for number, intended in enumerate(self._schedule)
        ]
        judged = [
            request
            for request, intended in zip(requests, self._schedule, strict=True)
            if intended >= self._plan.warmup_seconds
        ]
        unsent = sum(request.outcome is RequestOutcome.UNSENT for request in requests)
        ended = sum(log.ended for log in self._logs)
        unparsable = sum(log.unparsable for log in self._logs)
        problems = {
            problem: problem != "",
            f"only {ended} of {len(self._logs)} load workers ended by themselves": ended
            < len(self._logs),
            f"{unsent} of {len(requests)} requests were not sent or left no record": unsent > 0,
            f"{unparsable} lines of the request log cannot be read": unparsable > 0,
            "the schedule holds no request": not judged,
        }
        return LoadResult(
            plan=self._plan,
            started_at=math.nan if self.started_at is None else self.started_at,
            requests=tuple(judged),
            incomplete="; ".join(text for text, found in problems.items() if found),
            generator_cpu=max(
                (log.cpu for log in self._logs if not math.isnan(log.cpu)), default=math.nan
            ),
        )
