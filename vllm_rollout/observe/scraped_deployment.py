"""Scrapes of one deployment's servers in Prometheus: whose they are, and up to when."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.observe.attribution import mixed_targets, renamed_targets, unattributed
from vllm_rollout.observe.missing_servers import (
    LONGEST_LAG_SECONDS,
    Newest,
    Replicas,
    newest_common,
)
from vllm_rollout.observe.prometheus import Prometheus, Series, selector
from vllm_rollout.observe.series import (
    LONGEST_INTERVAL_SECONDS,
    Scrapes,
    Target,
    scrape_intervals,
    scrapes_of,
    target_of,
)
from vllm_rollout.policy import Policy
from vllm_rollout.policy.prometheus import Prometheus as Rules

LABELS = "prometheus.labels"
"""Where the policy has the labels of a deployment's targets."""
_STARTED = "process_start_time_seconds"
_TO_KNOW_INTERVALS = timedelta(seconds=4 * LONGEST_INTERVAL_SECONDS)
"""So far back before a window it is looked for how often servers are scraped."""
_CHUNK = timedelta(hours=1)
"""Longer stretches are asked for piece by piece, so that no answer grows too large."""


class ScrapedDeployment:
    """One deployment's servers as Prometheus scrapes them. Every method raises UnreachableError
    without an answer.

    `replicas` are those that should be scraped, asked for with each question.
    """

    def __init__(
        self,
        prometheus: Prometheus,
        rules: Rules,
        deployment: Deployment,
        replicas: Replicas = lambda: None,
    ) -> None:
        self._prometheus, self._rules, self._replicas = prometheus, rules, replicas
        self._known_up: tuple[datetime, datetime, list[Series]] | None = None
        self._filled = {
            "model": deployment.model,
            "environment": deployment.environment,
            "namespace": deployment.namespace,
            "release": deployment.release,
        }
        self._labels = self._fill(rules.labels)

    @classmethod
    def of(
        cls, policy: Policy, deployment: Deployment, replicas: Replicas = lambda: None
    ) -> Self | None:
        """The metrics of `deployment`; None where the policy names no Prometheus."""
        rules = policy.prometheus
        if rules.url is None:
            return None
        file = rules.token_file if rules.username is None else rules.password_file
        client = Prometheus(
            rules.url,
            token=os.environ.get(rules.token_env if rules.username is None else rules.password_env),
            token_file=Path(file) if file else None,
            username=rules.username,
            tenant=rules.tenant,
            ca_file=Path(rules.ca_file) if rules.ca_file else None,
            timeout_seconds=rules.timeout_seconds,
        )
        return cls(client, rules, deployment, replicas)

    def close(self) -> None:
        """Close the connections."""
        self._prometheus.close()

    def now(self) -> datetime:
        """Return the time where Prometheus runs."""
        return self._prometheus.now()

    def newest(self, now: datetime, window: timedelta = timedelta()) -> Newest:
        """Return the newest time of which Prometheus has a scrape of every server, up to `now`.

        `window` is how long before it is asked about next: `up` is known then.
        """
        lag = timedelta(seconds=LONGEST_LAG_SECONDS)
        begin = now - lag - window - _TO_KNOW_INTERVALS
        up = self._samples(selector("up", self._labels), begin, now)
        self._known_up = (begin, now, up)
        return self._newest_common(up, _window(up, now - lag, now), self._replicas())

    def _scrapes(self, start: datetime, end: datetime) -> tuple[Scrapes, str]:
        """The servers' scrapes, and why it is not known whose they are (or nothing)."""
        up, started, scrapes = self._up(start, end, self._replicas())
        return scrapes, (
            mixed_targets(up, scrapes, self._rules.labels, LABELS)
            or renamed_targets(up, scrapes)
            or unattributed(started, scrapes)
            or scrapes.missing
        )

    def _up(
        self, start: datetime, end: datetime, replicas: Sequence[Replica] | None
    ) -> tuple[list[Series], list[Series], Scrapes]:
        def of_servers(metric: str, begin: datetime, end: datetime) -> list[Series]:
            known = self._known_up
            if metric == "up" and known and known[0] <= begin and end <= known[1]:
                return [_between(series, begin, end) for series in known[2]]
            return self._samples(selector(metric, self._labels), begin, end)

        return self._scraped(of_servers, start, end, replicas)

    def _scraped(
        self,
        ask: Callable[[str, datetime, datetime], list[Series]],
        start: datetime,
        end: datetime,
        replicas: Sequence[Replica] | None = (),
    ) -> tuple[list[Series], list[Series], Scrapes]:
        """The series of `up` and of start times, and their scrapes up to the newest that all have.

        They reach back before `start` by as much as a target may go without a scrape.
        """
        up = ask("up", start - _TO_KNOW_INTERVALS, end)
        window = _window(up, start, end)
        newest = self._newest_common(up, window, replicas)
        missing = newest.missing
        if newest.at > start.timestamp():
            end = datetime.fromtimestamp(newest.at, UTC)
        elif newest.partly:
            missing = missing or f"no sample of every server in this time: {newest.lag}"
        since = self._begin(window)
        up = [series for each in up if (series := _between(each, since, end)).samples]
        started = ask(_STARTED, since, end)
        scrapes = scrapes_of(up, start, end, started)
        lag, intervals = newest.lag, window.intervals
        return up, started, replace(scrapes, intervals=intervals, lag=lag, missing=missing)

    def _newest_common(
        self, up: list[Series], window: Scrapes, replicas: Sequence[Replica] | None
    ) -> Newest:
        return newest_common(
            up,
            window.intervals,
            window.start,
            window.end,
            replicas=replicas,
            longest=window.lookback(self._rules.max_gap_seconds),
        )

    def _begin(self, scrapes: Scrapes) -> datetime:
        longest = scrapes.lookback(self._rules.max_gap_seconds)
        return datetime.fromtimestamp(scrapes.start - longest, UTC)

    def _newest(self, names: Iterable[str], scrapes: Scrapes) -> list[Series]:
        """The series of the first of `names` that each server has."""
        found: list[Series] = []
        known: set[Target] = set()
        for name in names:
            if known and known >= set(scrapes.up):
                break
            series = self._series(selector(name, self._labels), scrapes)
            found += [s for s in series if target_of(s) not in known]
            known |= {target_of(s) for s in series}
        return found

    def _series(self, promql: str, scrapes: Scrapes) -> list[Series]:
        """All samples from a little before the start, where increases begin, to the end."""
        return self._samples(promql, self._begin(scrapes), datetime.fromtimestamp(scrapes.end, UTC))

    def _samples(self, promql: str, begin: datetime, end: datetime) -> list[Series]:
        pieces: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        at = begin
        while at < end:
            until = min(at + _CHUNK, end)
            for series in self._prometheus.scraped(promql, at, until):
                pieces.setdefault(tuple(sorted(series.labels.items())), []).extend(series.samples)
            at = until
        return [Series(dict(labels), tuple(samples)) for labels, samples in pieces.items()]

    def _counter_labels(self) -> dict[str, str]:
        """The labels of the counter of requests, those of the deployment's targets included."""
        return {**self._fill(self._rules.requests.labels), **self._labels}

    def _fill(self, labels: Mapping[str, str | None]) -> dict[str, str]:
        return {name: value.format_map(self._filled) for name, value in labels.items() if value}


def _window(up: Iterable[Series], start: datetime, end: datetime) -> Scrapes:
    """Return the window with the scrape intervals that `up` shows, and no scrape yet."""
    return replace(scrapes_of([], start, end), intervals=scrape_intervals(up))


def _between(series: Series, begin: datetime, end: datetime) -> Series:
    """Return the series with its samples in (`begin`, `end`]."""
    first, last = begin.timestamp(), end.timestamp()
    return replace(series, samples=tuple(s for s in series.samples if first < s[0] <= last))
