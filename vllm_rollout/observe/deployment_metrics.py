"""Metrics of one deployment in Prometheus: requests, latency, whether its servers were up.

Where several series answer a question they are added up. Where it was not scraped, or has no such
series, an observation says so in `unknown` and has no figure: absence of data is never health.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Self

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.request_counts import ErrorRates, Gap, LatencyCounts, RequestCounts, Uptime
from vllm_rollout.observe.prometheus import Prometheus, Series, selector
from vllm_rollout.observe.series import Scrapes, Target, scrapes_of, target_of
from vllm_rollout.policy import Policy
from vllm_rollout.policy.prometheus import Prometheus as Rules
from vllm_rollout.policy.prometheus import RequestCounter

E2E_LATENCY = ("vllm:e2e_request_latency_seconds",)
TTFT = ("vllm:time_to_first_token_seconds",)
INTER_TOKEN = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")
"""Renamed in vLLM 0.10.2; the old name was dropped in 0.16."""
KV_CACHE_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""Renamed in vLLM 0.10.2; the old name was dropped in 0.12."""
WAITING = ("vllm:num_requests_waiting",)
_SERVERS = "model servers"
_STARTED = "process_start_time_seconds"
_REJECTIONS = "vllm:admission_rejections_total"
_CHUNK = timedelta(hours=1)
"""Longer stretches are asked for piece by piece, so that no answer grows too large."""


class DeploymentMetrics:
    """The metrics of one deployment. Every method raises UnreachableError without an answer."""

    def __init__(self, prometheus: Prometheus, rules: Rules, deployment: Deployment) -> None:
        self._prometheus, self._rules = prometheus, rules
        self._filled = {
            "model": deployment.model,
            "environment": deployment.environment,
            "namespace": deployment.namespace,
            "release": deployment.release,
        }
        self._labels = self._fill(rules.labels)

    @classmethod
    def of(cls, policy: Policy, deployment: Deployment) -> Self | None:
        """The metrics of `deployment`; None where the policy names no Prometheus."""
        rules = policy.prometheus
        if rules.url is None:
            return None
        client = Prometheus(
            rules.url,
            token=os.environ.get(rules.token_env),
            token_file=Path(rules.token_file) if rules.token_file else None,
            ca_file=Path(rules.ca_file) if rules.ca_file else None,
            timeout_seconds=rules.timeout_seconds,
        )
        return cls(client, rules, deployment)

    def close(self) -> None:
        """Close the connections."""
        self._prometheus.close()

    def now(self) -> datetime:
        """Return the time where Prometheus runs."""
        return self._prometheus.now()

    def error_rates(self, window: timedelta, *, end: datetime) -> ErrorRates:
        """Requests and failures in the `window` up to `end`, by every source."""
        start = end - window
        counter = self._rules.requests
        labels = {**self._fill(counter.labels), **self._labels}
        own = self._counts(_SERVERS, counter, labels, self._scrapes(start, end))
        if self._rules.gateway is None:
            return ErrorRates(sources=(own,))
        gateway = self._rules.gateway
        labels = self._fill(gateway.labels)
        found = self._series(selector(gateway.metric, labels, gateway.matching), start, end)
        jobs = sorted({series.labels.get("job", "") for series in found})
        up = [s for job in jobs for s in self._series(selector("up", {"job": job}), start, end)]
        scrapes = scrapes_of(up, start, end)
        return ErrorRates(sources=(own, self._counts("gateway", gateway, labels, scrapes)))

    def latency(
        self, window: timedelta, *, end: datetime, histogram: tuple[str, ...] = E2E_LATENCY
    ) -> LatencyCounts:
        """Return a histogram's increase in the `window` up to `end`, all series added up.

        `histogram` has its names, newest first; of each server the newest that it has is taken.
        """
        start = end - window
        scrapes = self._scrapes(start, end)
        gaps = scrapes.gaps(self._rules.max_gap_seconds)
        if unknown := _unknown(scrapes, gaps):
            return LatencyCounts(gaps=gaps, unknown=unknown)
        found = self._newest([f"{name}_bucket" for name in histogram], start, end)
        counts: dict[float, float] = {}
        resets = 0
        for series in found:
            bound = float(series.labels.get("le", "nan"))
            grown = scrapes.increase(series)
            counts[bound] = counts.get(bound, 0.0) + grown.amount
            resets = max(resets, grown.resets)
        if math.inf not in counts or any(math.isnan(bound) for bound in counts):
            return LatencyCounts(gaps=gaps, unknown=f"no series of {histogram[0]}")
        whole = {bound: round(n) for bound, n in sorted(counts.items())}
        return LatencyCounts(cumulative=whole, resets=resets, gaps=gaps)

    def gauge(self, names: tuple[str, ...], *, at: datetime) -> float | None:
        """The sum of a gauge over all servers at a moment; None where no server has it."""
        start = at - self._rules.max_gap
        values = [s.samples[-1][1] for s in self._newest(list(names), start, at) if s.samples]
        return sum(values) if values else None

    def uptime(self, start: datetime, end: datetime) -> Uptime:
        """Return how many servers were up at each scrape, and when their counters were reset."""
        scrapes = self._scrapes(start, end)
        longest = self._rules.max_gap_seconds
        scraped = sorted(
            (at, target, up == 1) for target, seen in scrapes.up.items() for at, up in seen
        )
        latest: dict[Target, tuple[float, bool]] = {}
        moments: list[tuple[float, int]] = []
        for at, target, up in scraped:
            latest[target] = (at, up)
            # Servers are scraped one after the other; one not heard of for long is gone.
            count = sum(well for when, well in latest.values() if at - when <= longest)
            if at > scrapes.start:
                moments.append((at, count))
        return Uptime(
            moments=tuple(moments),
            restarts=tuple(sorted(self._restarts(scrapes, start, end))),
            gaps=scrapes.gaps(longest),
        )

    def _restarts(self, scrapes: Scrapes, start: datetime, end: datetime) -> set[float]:
        """Return when a server's process was seen to be another one."""
        found: set[float] = set()
        for series in self._series(selector(_STARTED, self._labels), start, end):
            found |= {now[0] for was, now in pairwise(series.samples) if now[1] != was[1]}
        counter = self._rules.requests.metric
        for series in self._series(selector(counter, self._labels), start, end):
            found |= {now[0] for was, now in pairwise(series.samples) if now[1] < was[1]}
        return {at for at in found if at > scrapes.start}

    def _counts(
        self,
        source: str,
        counter: RequestCounter,
        labels: Mapping[str, str],
        scrapes: Scrapes,
    ) -> RequestCounts:
        start = datetime.fromtimestamp(scrapes.start, UTC)
        end = datetime.fromtimestamp(scrapes.end, UTC)
        gaps = scrapes.gaps(self._rules.max_gap_seconds)
        if unknown := _unknown(scrapes, gaps):
            return RequestCounts(source=source, gaps=gaps, unknown=unknown)
        status = counter.status_label
        every = self._series(selector(counter.metric, labels, counter.matching), start, end)
        if not every or not all(series.labels.get(status) for series in every):
            unknown = f"no series of {counter.metric} that all have the label {status}"
            return RequestCounts(source=source, gaps=gaps, unknown=unknown)
        bad = [s for s in every if re.fullmatch(counter.failed, s.labels[status])]
        total, resets = _sum(scrapes, every)
        failures, _ = _sum(scrapes, bad)
        turned_away = 0
        if source == _SERVERS:
            rejections = self._series(selector(_REJECTIONS, self._labels), start, end)
            turned_away, _ = _sum(scrapes, rejections)
        return RequestCounts(
            source=source,
            total=total,
            failures=max(failures, turned_away),
            failures_at_most=failures + turned_away,
            resets=resets,
            gaps=gaps,
        )

    def _scrapes(self, start: datetime, end: datetime) -> Scrapes:
        return scrapes_of(self._series(selector("up", self._labels), start, end), start, end)

    def _newest(self, names: list[str], start: datetime, end: datetime) -> list[Series]:
        """The series of the first of `names` that each server has."""
        found: list[Series] = []
        known: set[Target] = set()
        for name in names:
            series = self._series(selector(name, self._labels), start, end)
            found += [s for s in series if target_of(s) not in known]
            known |= {target_of(s) for s in series}
        return found

    def _series(self, promql: str, start: datetime, end: datetime) -> list[Series]:
        """All samples from a little before `start`, where increases begin, to `end`."""
        pieces: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        at = start - self._rules.max_gap
        while at < end:
            until = min(at + _CHUNK, end)
            for series in self._prometheus.scraped(promql, at, until):
                pieces.setdefault(tuple(sorted(series.labels.items())), []).extend(series.samples)
            at = until
        return [Series(dict(labels), tuple(samples)) for labels, samples in pieces.items()]

    def _fill(self, labels: Mapping[str, str | None]) -> dict[str, str]:
        return {name: value.format_map(self._filled) for name, value in labels.items() if value}


def _unknown(scrapes: Scrapes, gaps: Iterable[Gap]) -> str:
    if not scrapes.targets:
        return "Prometheus knows no target with the deployment's labels (`prometheus.labels`)"
    return "; ".join(str(gap) for gap in gaps)


def _sum(scrapes: Scrapes, found: Iterable[Series]) -> tuple[int, int]:
    """The growth of all series together, in whole requests, and the most resets of any."""
    grown = [scrapes.increase(series) for series in found]
    return round(sum(each.amount for each in grown)), max((g.resets for g in grown), default=0)
