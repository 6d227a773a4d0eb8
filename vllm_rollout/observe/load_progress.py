"""Where a load run stands while it runs.

Running percentiles come from HDR histograms (3 significant digits), because they are asked for
again every second; the result's own figures are exact.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

from vllm_rollout.observe.load import RequestRecord
from vllm_rollout.observe.load_plan import LoadPlan

_LONGEST_SECONDS = 3600
_PER_SECOND = 1_000_000
_SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """One look at a running load; counts include the warm-up, percentiles do not.

    In the percentiles a failed request is slower than every other, so they are infinite when more
    requests fail than the percentile leaves out, and NaN before the first has ended.
    """

    elapsed_seconds: float
    remaining_seconds: float
    """Until the last request is due to be sent."""
    asked_rate_per_second: float
    planned: int
    sent: int
    done: int
    failures: int
    latency_p50_seconds: float
    latency_p95_seconds: float
    ttft_p50_seconds: float
    ttft_p95_seconds: float


class ProgressMeter:
    """Sums up the requests of a run as they are read."""

    def __init__(self, plan: LoadPlan, *, planned: int) -> None:
        self._plan = plan
        self._planned = planned
        self._latency, self._ttft = _histogram(), _histogram()
        self._done = self._failures = 0

    def add(self, records: Iterable[RequestRecord]) -> None:
        """Count finished requests."""
        for record in records:
            self._done += 1
            self._failures += not record.ok
            if record.intended >= self._plan.warmup_seconds:
                _add(self._latency, record.latency_seconds if record.ok else math.inf)
                if self._plan.stream:
                    _add(self._ttft, record.ttft_seconds if record.ok else math.inf)

    def progress(self, *, elapsed_seconds: float, sent: int) -> LoadProgress:
        """How things stand at `elapsed_seconds` into the schedule, with `sent` requests sent."""
        return LoadProgress(
            elapsed_seconds=max(0.0, elapsed_seconds),
            remaining_seconds=max(0.0, self._plan.total_seconds - max(0.0, elapsed_seconds)),
            asked_rate_per_second=self._plan.mean_rate_per_second,
            planned=self._planned,
            sent=max(sent, self._done),
            done=self._done,
            failures=self._failures,
            latency_p50_seconds=_percentile(self._latency, 50),
            latency_p95_seconds=_percentile(self._latency, 95),
            ttft_p50_seconds=_percentile(self._ttft, 50),
            ttft_p95_seconds=_percentile(self._ttft, 95),
        )


def _histogram() -> HdrHistogram:
    # The top value is kept for requests that never ended well.
    return HdrHistogram(1, 2 * _LONGEST_SECONDS * _PER_SECOND, _SIGNIFICANT_DIGITS)


def _add(histogram: HdrHistogram, seconds: float) -> None:
    slow = not seconds <= _LONGEST_SECONDS
    histogram.record_value(
        2 * _LONGEST_SECONDS * _PER_SECOND if slow else max(1, round(seconds * _PER_SECOND))
    )


def _percentile(histogram: HdrHistogram, percentile: float) -> float:
    if histogram.get_total_count() == 0:
        return math.nan
    seconds = float(histogram.get_value_at_percentile(percentile)) / _PER_SECOND
    return math.inf if seconds > _LONGEST_SECONDS else seconds
