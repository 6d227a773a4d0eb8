"""Prometheus metrics of a deployment during a watch, asked without making the watch wait.

Each question is asked in a thread of its own: a Prometheus that hangs holds no probe up.
"""

import threading
import time
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Self

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import (
    ErrorRates,
    LiveCounts,
    RequestCounts,
    nothing_known,
)
from vllm_rollout.model.units import format_duration
from vllm_rollout.observe.deployment_metrics import SERVERS, DeploymentMetrics
from vllm_rollout.policy import Policy

_MOST_PROBED = 10_000
_SLACK_SECONDS = 2.0
"""Between a probe and the count of it."""
_INTERVALS = 4
"""Windows of fewer scrape intervals would leave no probe that is certainly in them."""


class LiveMetrics:
    """Polls Prometheus about one deployment; a context manager.

    The time is Prometheus' own, so that no clock here has to agree with it.
    """

    def __init__(self, metrics: DeploymentMetrics, window: timedelta) -> None:
        self._metrics, self._window = metrics, window
        self._began: datetime | None = None
        self._known_until: datetime | None = None
        self._ahead = 0.0
        self._probed: deque[tuple[float, ProbeSample]] = deque(maxlen=_MOST_PROBED)
        self._answer: LiveCounts | None = None
        self._asking: threading.Thread | None = None
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        if self._asking is None or not self._asking.is_alive():
            self._metrics.close()  # else the question that is still open does it

    def newest(self) -> LiveCounts | None:
        """The answer that came since the last call, if one did; the next question is asked.

        It is about the policy's window, and reaches back no further than the first question.
        """
        answer, self._answer = self._answer, None
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()
        return answer

    def probed(self, probes: ProbeSample) -> None:
        """Note probes that were sent now: servers count them as they count users' requests."""
        self._probed.append((time.monotonic(), probes))

    def since_the_first(self) -> LiveCounts:
        """Return the counts since the first question; this waits for the answer."""
        return self._counts(None)

    def _ask(self) -> None:
        before = self._known_until
        answer = self._counts(self._window)
        if before is None or self._known_until != before:  # else it would be counted again
            self._answer = answer
        if self._over:
            self._metrics.close()

    def _counts(self, window: timedelta | None) -> LiveCounts:
        """The counts up to the newest scrape that Prometheus has of every server."""
        self._known_until = None
        try:
            now = self._metrics.now()
            self._ahead = now.timestamp() - time.monotonic()
            self._began = self._began or now
            end = self._metrics.newest(now)
            lasted = end - self._began
            window = lasted if window is None else min(window, lasted)
            if window <= timedelta():
                late = format_duration(timedelta(seconds=round((now - end).total_seconds())))
                return nothing_known(f"no time has passed yet: the newest scrape is {late} old")
            self._known_until = end
            rates = self._metrics.error_rates(window, end=end)
            interval = max(each.interval_seconds for each in rates.sources)
            if (wider := min(_INTERVALS * timedelta(seconds=interval), lasted)) > window:
                window, rates = wider, self._metrics.error_rates(wider, end=end)
            sources = tuple(
                self._with_probes(each, end - window, end) if each.source == SERVERS else each
                for each in rates.sources
            )
            return LiveCounts(
                rates=ErrorRates(sources=sources),
                latency=self._metrics.latency(window, end=end),
            )
        except UnreachableError as error:
            return nothing_known(str(error))

    def _with_probes(self, counts: RequestCounts, start: datetime, end: datetime) -> RequestCounts:
        """The counts, with as many probes as are certainly among them."""
        interval = counts.interval_seconds
        first, last = start.timestamp() - self._ahead, end.timestamp() - self._ahead
        answered = failed = 0
        # Copied whole in one step: the watch goes on adding to it.
        for at, probes in self._probed.copy():
            if first + _SLACK_SECONDS < at <= last - interval - _SLACK_SECONDS:
                answered += probes.total - probes.failures
            if first - interval - _SLACK_SECONDS < at <= last + _SLACK_SECONDS:
                failed += probes.failures
        return replace(counts, probes=answered, failed_probes=min(failed, counts.failures))


class NoMetrics:
    """In place of `LiveMetrics`: `why` says why nothing is known, None where nobody is asked."""

    def __init__(self, why: str | None) -> None:
        self._why = why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def newest(self) -> LiveCounts | None:
        """Nothing."""
        return None if self._why is None else nothing_known(self._why)

    def probed(self, probes: ProbeSample) -> None:
        """Do nothing."""

    def since_the_first(self) -> LiveCounts | None:
        """Nothing."""
        return self.newest()


def live_metrics(policy: Policy, deployment: Deployment) -> LiveMetrics | NoMetrics:
    """Return what to ask during a watch, by the policy's triggers. Does not raise."""
    try:
        metrics = DeploymentMetrics.of(policy, deployment)
    except UnreachableError as error:
        return NoMetrics(str(error))
    return NoMetrics(None) if metrics is None else LiveMetrics(metrics, policy.triggers.window)
