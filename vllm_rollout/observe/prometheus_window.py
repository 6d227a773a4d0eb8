"""Prometheus metrics of a deployment during a watch, asked without making the watch wait.

Each question is asked in a thread of its own: a Prometheus that hangs holds no probe up.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Self

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import Observation, ProbeSample
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
_INTERVALS = 8
_WIDEST = timedelta(minutes=5)
_FEWEST_FAILURES = 3
"""One or two may be chance."""


class LiveMetrics:
    """Polls Prometheus about one deployment; a context manager.

    The time is Prometheus' own, so that no clock here has to agree with it.
    """

    def __init__(self, metrics: DeploymentMetrics, window: timedelta, *, fewest: int = 10) -> None:
        self._metrics, self._window, self._fewest = metrics, window, fewest
        self._began: datetime | None = None
        self._known_until: datetime | None = None
        self._ahead = 0.0
        self._probed: deque[tuple[float, ProbeSample]] = deque(maxlen=_MOST_PROBED)
        self._answer: LiveCounts | None = None
        self._asking: threading.Thread | None = None
        self._over = False
        self._late = ""
        self.replicas: Sequence[Replica] | None = None
        """The deployment's replicas as last seen; None where they are not known."""

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

    def seen(self, observation: Observation) -> None:
        """Note the replicas, and probes that were sent now: servers count them as they count users'
        requests.
        """
        self._probed.append((time.monotonic(), observation.probes))
        self.replicas = observation.replicas

    def since_the_first(self) -> LiveCounts:
        """Return the counts since the first question; this waits for the answer."""
        return self._counts(None)

    def _ask(self) -> None:
        before = self._known_until
        answer = self._counts(self._window)
        if before is None or self._known_until != before:  # else it would be counted again
            self._answer = answer
        elif self._late:
            self._answer = nothing_known(f"no newer sample of every server: {self._late}")
        if self._over:
            self._metrics.close()

    def _counts(self, window: timedelta | None) -> LiveCounts:
        """The counts up to the newest scrape that Prometheus has of every server."""
        self._known_until = None
        try:
            now = self._metrics.now()
            self._ahead = now.timestamp() - time.monotonic()
            self._began = self._began or now
            newest = self._metrics.newest(now, max(window or now - self._began, _WIDEST))
            end = datetime.fromtimestamp(newest.at, UTC)
            self._late = newest.lag if newest.partly else ""
            lasted = end - self._began
            window = lasted if window is None else min(window, lasted)
            if window <= timedelta():
                late = format_duration(timedelta(seconds=round((now - end).total_seconds())))
                late = f"{late} old{'; ' * bool(self._late)}{self._late}"
                return nothing_known(f"no time has passed yet: the newest scrape is {late}")
            self._known_until = end
            sources = self._metrics.error_rates(window, end=end).sources
            if users := self._users(sources, window, lasted, end):
                sources = (*sources, users)
            return LiveCounts(
                rates=ErrorRates(sources=sources),
                latency=self._metrics.latency(window, end=end),
            )
        except UnreachableError as error:
            return nothing_known(str(error))

    def _users(
        self, sources: Sequence[RequestCounts], window: timedelta, lasted: timedelta, end: datetime
    ) -> RequestCounts | None:
        """Users' requests without the probes that are certainly among them: at most so many, and at
        least so many failures.

        None where these are too few to show anything. A window of few scrape intervals would leave
        no probe that is certainly in it.
        """
        counts = next((each for each in sources if each.source == SERVERS), None)
        if counts is None or counts.unknown or not counts.failures:
            return None
        interval = counts.interval_seconds
        wide = min(_INTERVALS * timedelta(seconds=interval), _WIDEST, lasted)
        if wide > window:
            window = wide
            counts = self._metrics.by_servers(window, end=end)
        last = end.timestamp() - self._ahead
        first = last - window.total_seconds()
        answered = failed = 0
        # Copied whole in one step: the watch goes on adding to it.
        for at, probes in self._probed.copy():
            if first + _SLACK_SECONDS < at <= last - interval - _SLACK_SECONDS:
                answered += probes.total - probes.failures
            if first - interval - _SLACK_SECONDS < at <= last + _SLACK_SECONDS:
                failed += probes.failures
        failures = counts.failures - failed
        total = max(0, counts.total - counts.failures - answered) + failures
        if counts.unknown or not answered or failures < _FEWEST_FAILURES or total < self._fewest:
            return None
        return RequestCounts(
            source="users, without the watch's probes",
            total=total,
            failures=failures,
            failures_at_most=failures,
        )


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

    def seen(self, observation: Observation) -> None:
        """Do nothing."""

    def since_the_first(self) -> LiveCounts | None:
        """Nothing."""
        return self.newest()


def live_metrics(policy: Policy, deployment: Deployment) -> LiveMetrics | NoMetrics:
    """Return what to ask during a watch, by the policy's triggers. Does not raise."""
    try:
        metrics = DeploymentMetrics.of(policy, deployment, lambda: live.replicas)
    except UnreachableError as error:
        return NoMetrics(str(error))
    if metrics is None:
        return NoMetrics(None)
    live = LiveMetrics(metrics, policy.triggers.window, fewest=policy.watch.probes)
    return live
