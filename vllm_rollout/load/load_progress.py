"""Progress of a load run.

Running percentiles come from HDR histograms (3 significant digits), because they are asked for
again every second; the result's own figures are exact.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord

_LONGEST_SECONDS = 3600
_PER_SECOND = 1_000_000
_SIGNIFICANT_DIGITS = 3


_LATELY_SECONDS = 10.0


class RunningTimes:
    """Times of the requests so far, in seconds; one that failed is slower than every other."""

    def __init__(self) -> None:
        # The top value is kept for requests that never ended well.
        self._histogram = HdrHistogram(1, 2 * _LONGEST_SECONDS * _PER_SECOND, _SIGNIFICANT_DIGITS)

    def add(self, seconds: float) -> None:
        """Count one."""
        slow = not seconds <= _LONGEST_SECONDS
        self._histogram.record_value(
            2 * _LONGEST_SECONDS * _PER_SECOND if slow else max(1, round(seconds * _PER_SECOND))
        )

    @property
    def count(self) -> int:
        """Number of times."""
        return int(self._histogram.get_total_count())

    def percentile(self, percentile: float) -> float | None:
        """The percentile; None of none, infinite where it lies among the failed."""
        if self.count == 0:
            return None
        seconds = float(self._histogram.get_value_at_percentile(percentile)) / _PER_SECOND
        return math.inf if seconds > _LONGEST_SECONDS else seconds

    def at_rank(self, rank: int) -> float | None:
        """The time of that rank, 1 being the fastest."""
        return self.percentile(100 * rank / self.count) if self.count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Progress of a running load; counts include the warm-up, times do not.

    Rates are those of the last ten seconds: what the schedule asked for, and what was sent.
    `generator_cpu` is what the busiest worker used of a core so far; None before it is known.
    """

    elapsed_seconds: float
    remaining_seconds: float
    """Until the last request is due to be sent."""
    asked_rate_per_second: float
    sent_rate_per_second: float
    planned: int
    sent: int
    done: int
    failures: int
    unsent: int
    latency: RunningTimes
    ttft: RunningTimes
    """None are counted where answers are not streamed."""
    lag_p99_seconds: float | None
    generator_cpu: float | None


class ProgressMeter:
    """Sums up the requests of a run as they are read; `schedule` is when they are due."""

    def __init__(self, plan: LoadPlan, *, schedule: Sequence[float]) -> None:
        self._plan = plan
        self._schedule = schedule
        self._latency, self._ttft, self._lag = RunningTimes(), RunningTimes(), RunningTimes()
        self._done = self._failures = self._unsent = 0
        self._sent: deque[tuple[float, int]] = deque([(0.0, 0)])

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Count finished requests."""
        for record in records:
            self._done += 1
            self._failures += not record.ok
            self._unsent += record.outcome is RequestOutcome.UNSENT
            if record.intended < self._plan.warmup_seconds:
                continue
            latency, ttft, lag = record.latency_seconds, record.ttft_seconds, record.lag_seconds
            self._latency.add(latency if record.ok and latency is not None else math.inf)
            if lag is not None:
                self._lag.add(lag)
            # Of a mix only some may be streamed; the rest has no first token to wait for.
            if record.ok and ttft is not None:
                self._ttft.add(ttft)
            elif not record.ok and (ttft is not None or self._plan.stream):
                self._ttft.add(math.inf)

    def progress(
        self, *, elapsed_seconds: float, sent: int, busy_seconds: float | None = None
    ) -> LoadProgress:
        """Return the progress at `elapsed_seconds` into the schedule.

        Args:
            elapsed_seconds: since the schedule's zero; negative before it.
            sent: requests sent so far.
            busy_seconds: CPU time that the busiest worker took so far, if it is known.
        """
        elapsed = max(0.0, elapsed_seconds)
        sent = max(sent, self._done)
        asked, reached = self._rates(elapsed, sent)
        return LoadProgress(
            elapsed_seconds=elapsed,
            remaining_seconds=max(0.0, self._plan.total_seconds - elapsed),
            asked_rate_per_second=asked,
            sent_rate_per_second=reached,
            planned=len(self._schedule),
            sent=sent,
            done=self._done,
            failures=self._failures,
            unsent=self._unsent,
            latency=self._latency,
            ttft=self._ttft,
            lag_p99_seconds=self._lag.percentile(99),
            generator_cpu=busy_seconds / elapsed if busy_seconds is not None and elapsed else None,
        )

    def _rates(self, elapsed: float, sent: int) -> tuple[float, float]:
        """Rates of late: asked and reached."""
        end = min(elapsed, self._plan.total_seconds)
        while len(self._sent) > 1 and self._sent[1][0] <= end - _LATELY_SECONDS:
            self._sent.popleft()
        begin, sent_before = self._sent[0]
        if end > self._sent[-1][0]:
            self._sent.append((end, sent))
        if not end > begin:
            return self._plan.rate_per_second, 0.0
        if self._plan.shape or self._plan.trace:
            due = bisect_left(self._schedule, end) - bisect_left(self._schedule, begin)
            asked = due / (end - begin)
        else:
            asked = self._plan.rate_per_second
        return asked, (sent - sent_before) / (end - begin)
