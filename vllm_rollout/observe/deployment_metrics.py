"""Metrics of one deployment in Prometheus: requests, latency, whether its servers were up.

Where several series answer a question they are added up. Where it was not scraped, has no such
series, or where it is not known whose samples they are, an observation says so in `unknown` and has
no figure: absence of data is never health.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.request_counts import (
    AnswerTimes,
    ErrorRates,
    Gap,
    LatencyCounts,
    RequestCounts,
    Uptime,
)
from vllm_rollout.observe.attribution import mixed_targets, renamed_targets, unattributed
from vllm_rollout.observe.counts import bound_of, counted_requests, grown_histogram
from vllm_rollout.observe.prometheus import Series, selector
from vllm_rollout.observe.scraped_deployment import LABELS, ScrapedDeployment
from vllm_rollout.observe.series import Scrapes, Target, clock, target_of
from vllm_rollout.policy.prometheus import RequestCounter


def spelled(*names: str) -> tuple[str, ...]:
    """The names, newest first, each as vLLM writes it and as OpenTelemetry does."""
    return tuple(each for name in names for each in (f"vllm:{name}", f"vllm_{name}"))


E2E_LATENCY = spelled("e2e_request_latency_seconds")
TTFT = spelled("time_to_first_token_seconds")
INTER_TOKEN = spelled("inter_token_latency_seconds", "time_per_output_token_seconds")
"""Renamed in vLLM 0.10.2; the old name was dropped in 0.16."""
KV_CACHE_USAGE = spelled("kv_cache_usage_perc", "gpu_cache_usage_perc")
"""Renamed in vLLM 0.10.2; the old name was dropped in 0.12."""
WAITING = spelled("num_requests_waiting")
ANSWERS = ("http_request_duration_highr_seconds",)
"""Of all requests over HTTP: no labels, and bounds at 3, 3.5, 4, 4.5 and 7.5 s, which those of the
engine lack. vLLM has had it since it counts HTTP requests.
"""
_BY_HANDLER = "http_request_duration_seconds_bucket"
_OF_ITS_COUNTER = "http_requests_total"
SERVERS = "model servers"
"""Name of the source that counts what the servers themselves counted."""
REJECTIONS = spelled("admission_rejections_total")


class DeploymentMetrics(ScrapedDeployment):
    """The metrics of one deployment. Every method raises UnreachableError without an answer."""

    def error_rates(self, window: timedelta, *, end: datetime) -> ErrorRates:
        """Requests and failures in the `window` up to `end`, by every source."""
        own = self.by_servers(window, end=end)
        if self._rules.gateway is None:
            return ErrorRates(sources=(own,))
        start = end - window
        gateway = self._rules.gateway
        labels = self._fill(gateway.labels)
        counts = selector(gateway.metric, labels, gateway.matching)
        found = self._samples(counts, start - self._rules.max_gap, end)
        targets = {target_of(series) for series in found}

        def of_gateway(metric: str, begin: datetime, end: datetime) -> list[Series]:
            """Series of the targets that count, by those of the labels that targets have."""
            every = (
                series
                for job in sorted({job for job, _ in targets})
                for series in self._samples(selector(metric, {"job": job}), begin, end)
            )
            return [
                series
                for series in every
                if target_of(series) in targets
                and all(series.labels.get(name, value) == value for name, value in labels.items())
            ]

        up, started, scrapes = self._scraped(of_gateway, start, end)
        doubt = (
            mixed_targets(
                up, scrapes, gateway.labels, "prometheus.gateway.labels", of_one_service=False
            )
            or renamed_targets(up, scrapes)
            or unattributed(started, scrapes)
        )
        return ErrorRates(sources=(own, self._counts("gateway", gateway, labels, scrapes, doubt)))

    def by_servers(self, window: timedelta, *, end: datetime) -> RequestCounts:
        """Requests and failures in the `window` up to `end`, as the servers counted them."""
        counter, scrapes = self._rules.requests, self._scrapes(end - window, end)
        return self._counts(SERVERS, counter, self._counter_labels(), *scrapes)

    def latency(
        self, window: timedelta, *, end: datetime, histogram: tuple[str, ...] = E2E_LATENCY
    ) -> LatencyCounts:
        """Return a histogram's increase in the `window` up to `end`, all servers added up.

        `histogram` has its names, newest first; of each server the newest that it has is taken.
        Servers of different versions may have different buckets: only bounds that all have, whose
        process answered a request, are bounds of the whole.
        """
        return self._latency(histogram, *self._scrapes(end - window, end))

    def _latency(self, histogram: tuple[str, ...], scrapes: Scrapes, doubt: str) -> LatencyCounts:
        gaps = scrapes.gaps(self._rules.max_gap_seconds)
        found = self._newest(buckets_of(histogram), scrapes)
        if unknown := why_unknown(scrapes, gaps, doubt or unattributed(found, scrapes)):
            return LatencyCounts(gaps=gaps, unknown=unknown)
        created = self._newest([f"{name}_created" for name in histogram], scrapes)
        return grown_histogram(histogram[0], scrapes, found, created, gaps)

    def answer_times(self, window: timedelta, *, end: datetime) -> AnswerTimes:
        """Return how long the answers to users took over HTTP, in the `window` up to `end`.

        The fine histogram has all requests in it. How many of them are answers to users is known
        from the counter of requests, and how many others were slow from the coarse histogram, which
        has handlers.
        """
        scrapes, mixed = self._scrapes(end - window, end)
        every = self._latency(ANSWERS, scrapes, mixed)
        counter, labels = self._rules.requests, self._counter_labels()
        counted = self._series(selector(counter.metric, labels, counter.matching), scrapes)
        by_handler = self._series(selector(_BY_HANDLER, self._labels), scrapes)
        if counter.metric != _OF_ITS_COUNTER or not by_handler:
            every = LatencyCounts(unknown=f"no series of {ANSWERS[0]} and {_OF_ITS_COUNTER}")
        doubt = unattributed(counted, scrapes) or unattributed(by_handler, scrapes)
        if doubt or every.unknown:
            unknown = LatencyCounts(unknown=doubt or every.unknown)
            return AnswerTimes(at_best=unknown, at_worst=unknown)
        failed = re.compile(f"4..|4xx|{counter.failed}").fullmatch
        good = bad = 0.0
        for series, grown in zip(counted, scrapes.increases(counted), strict=True):
            if failed(series.labels.get(counter.status_label, "")):
                bad += grown.amount + grown.unsure
            else:
                good += grown.amount
        matching = {name: re.compile(p).fullmatch for name, p in counter.matching.items()}
        others: dict[float, float] = {}
        for series, grown in zip(by_handler, scrapes.increases(by_handler), strict=True):
            if not all(found(series.labels.get(name, "")) for name, found in matching.items()):
                bound = bound_of(series)
                others[bound] = others.get(bound, 0.0) + grown.amount + grown.unsure
        return _among_others(every, round(good), math.ceil(bad), others)

    def bounds(self, *, at: datetime, histogram: tuple[str, ...] = E2E_LATENCY) -> list[float]:
        """Return the bounds of a histogram's buckets that all servers have; none without data."""
        scrapes, _ = self._scrapes(at - self._rules.max_gap, at)
        servers: dict[Target, set[float]] = {}
        for series in self._newest(buckets_of(histogram), scrapes):
            bound = bound_of(series)
            servers.setdefault(target_of(series), set()).add(bound)
        return sorted(set[float].intersection(*servers.values())) if servers else []

    def gauge(self, names: tuple[str, ...], *, at: datetime) -> float | None:
        """The sum of a gauge over all servers at a moment.

        None where no server has it, or where it is not known whose samples they are.
        """
        scrapes, doubt = self._scrapes(at - self._rules.max_gap, at)
        found = [series for series in self._newest(names, scrapes) if series.samples]
        if not found or doubt or unattributed(found, scrapes):
            return None
        return sum(series.samples[-1][1] for series in found)

    def uptime(self, start: datetime, end: datetime) -> Uptime:
        """Return how many servers were up at each scrape, and when their counters were reset."""
        # Without a platform what has ended is gone: a soak counts what is up.
        series, _, scrapes = self._up(start, end, self._replicas() or ())
        if mixed := mixed_targets(series, scrapes, self._rules.labels, LABELS):
            raise UnreachableError(
                f"Whose samples these are is not known: {mixed}",
                address=self._prometheus.url,
                remedy=f"Fix `{LABELS}` in the policy, or the scrape configuration.",
            )
        longest = self._rules.max_gap_seconds
        scraped = sorted(
            (at, target, up == 1) for target, seen in scrapes.up.items() for at, up in seen
        )
        latest: dict[Target, tuple[float, bool]] = {}
        moments: list[tuple[float, int]] = []
        for at, target, up in scraped:
            latest[target] = (at, up)
            # Servers are scraped one after the other; one not heard of for long is gone.
            count = sum(
                well
                for each, (when, well) in latest.items()
                if at - when <= scrapes.longest(each, longest)
            )
            if at > scrapes.start:
                moments.append((at, count))
        counters = self._series(selector(self._rules.requests.metric, self._labels), scrapes)
        return Uptime(
            moments=tuple(moments),
            restarts=tuple(sorted(scrapes.restarts(counters))),
            gaps=scrapes.gaps(longest),
        )

    def _counts(
        self,
        source: str,
        counter: RequestCounter,
        labels: Mapping[str, str],
        scrapes: Scrapes,
        doubt: str,
    ) -> RequestCounts:
        gaps = scrapes.gaps(self._rules.max_gap_seconds)
        every = self._series(selector(counter.metric, labels, counter.matching), scrapes)
        rejections: list[Series] = []
        if source == SERVERS:
            rejections = self._newest(REJECTIONS, scrapes)
        doubt = doubt or unattributed(every, scrapes) or unattributed(rejections, scrapes)
        if unknown := why_unknown(scrapes, gaps, doubt):
            return RequestCounts(source=source, gaps=gaps, unknown=unknown)
        metric = f"{counter.metric.removesuffix('_total')}_created"
        created = self._series(selector(metric, labels, counter.matching), scrapes)
        return counted_requests(source, counter, scrapes, every, created, rejections, gaps)


def buckets_of(histogram: Iterable[str]) -> list[str]:
    """The names of its buckets, and of the histogram itself where it is a native one."""
    return [f"{name}_bucket" for name in histogram] + [*histogram]


def _among_others(
    every: LatencyCounts, good: int, bad: int, others: Mapping[float, float]
) -> AnswerTimes:
    """Return what is known of `good` requests of `every` one, where `bad` ones may have been slow
    and `others` have coarser bounds.
    """
    other = others.get(math.inf, 0.0)
    at_best, at_worst, theirs = {}, {}, 0
    lacking = max(0, good - every.total)  # slow, for all that is known
    for bound, within in sorted(every.cumulative.items(), reverse=True):
        slow = every.total - within
        quick = max((n for each, n in others.items() if each <= bound), default=0.0)
        theirs = max(theirs, slow - bad - math.ceil(other - quick))
        at_best[bound] = good - min(good, theirs)
        at_worst[bound] = good if bound == math.inf else max(0, good - slow - lacking)
    return AnswerTimes(
        at_best=replace(every, cumulative=at_best), at_worst=replace(every, cumulative=at_worst)
    )


def why_unknown(scrapes: Scrapes, gaps: Iterable[Gap], doubt: str) -> str:
    """Return why nothing is known of the servers in this time; empty where it is."""
    if not scrapes.targets and scrapes.up:
        return f"no scrape since {clock(scrapes.start)}"
    if not scrapes.targets:
        return f"Prometheus knows no target with the deployment's labels (`{LABELS}`)"
    return doubt or "; ".join(str(gap) for gap in gaps)
