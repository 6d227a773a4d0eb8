"""Figures of model servers, from samples of their own metrics, whoever has scraped them.

Of each server the newest name that it has is taken. What one server does not say is not known of
all: no sum lacks a part.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.request_counts import LatencyCounts
from vllm_rollout.observe.attribution import unattributed
from vllm_rollout.observe.counts import counted_requests, grown_histogram
from vllm_rollout.observe.deployment_metrics import (
    E2E_LATENCY,
    INTER_TOKEN,
    KV_CACHE_USAGE,
    REJECTIONS,
    SERVERS,
    TTFT,
    WAITING,
    buckets_of,
    spelled,
)
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.series import Scrapes, Target, name_of, target_of
from vllm_rollout.policy.prometheus import RequestCounter

_INPUT_TOKENS = spelled("prompt_tokens_total", "prompt_tokens")
_OUTPUT_TOKENS = spelled("generation_tokens_total", "generation_tokens")
_RUNNING = spelled("num_requests_running")
_PREEMPTIONS = spelled("num_preemptions_total", "num_preemptions")
_HITS = spelled("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")
_QUERIES = spelled("prefix_cache_queries_total", "gpu_prefix_cache_queries_total")
"""Renamed in vLLM 0.10.2; the old names were dropped in 0.12."""
_RATES = {
    FigureName.INPUT_TOKEN_RATE: _INPUT_TOKENS,
    FigureName.OUTPUT_TOKEN_RATE: _OUTPUT_TOKENS,
    FigureName.PREEMPTION_RATE: _PREEMPTIONS,
}
_SUMS = {FigureName.QUEUE: WAITING, FigureName.RUNNING: _RUNNING}
_PERCENTILES = {
    FigureName.LATENCY_P50: (E2E_LATENCY, 50),
    FigureName.LATENCY_P95: (E2E_LATENCY, 95),
    FigureName.LATENCY_P99: (E2E_LATENCY, 99),
    FigureName.TTFT_P50: (TTFT, 50),
    FigureName.TTFT_P95: (TTFT, 95),
    FigureName.ITL_P50: (INTER_TOKEN, 50),
    FigureName.ITL_P95: (INTER_TOKEN, 95),
}
METRICS = (
    *(name for names in (*_RATES.values(), *_SUMS.values()) for name in names),
    *(name for names in (E2E_LATENCY, TTFT, INTER_TOKEN) for name in buckets_of(names)),
    *KV_CACHE_USAGE,
    *_HITS,
    *_QUERIES,
    *REJECTIONS,
)
"""Names of all that figures are made of, the counter of requests aside."""


class NotKnownError(Exception):
    """A figure is not known; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSamples:
    """Samples of a deployment's servers over a window.

    `requests` are the series of the policy's counter of requests. `no_rates` says why no increase
    is known, if so: what one process counted is no beginning for the next.
    """

    scrapes: Scrapes
    series: Sequence[Series]
    requests: Sequence[Series]
    counter: RequestCounter
    source: str
    max_gap_seconds: float
    no_rates: str = ""


def known_or_not(how: Callable[[], Figure]) -> Figure:
    """Return the figure; where it is not known, one that says why."""
    try:
        return how()
    except NotKnownError as error:
        return Figure(unknown=str(error))


def server_figures(samples: ServerSamples) -> dict[FigureName, Figure]:
    """Return the figures that the servers' own metrics make."""
    servers = _Servers(samples)
    return {
        FigureName.REQUEST_RATE: known_or_not(servers.request_rate),
        FigureName.ERROR_RATE: known_or_not(servers.error_rate),
        **{
            name: known_or_not(partial(servers.percentile, *question))
            for name, question in _PERCENTILES.items()
        },
        **{name: known_or_not(partial(servers.rate, names)) for name, names in _RATES.items()},
        **{name: known_or_not(partial(servers.gauge, names, sum)) for name, names in _SUMS.items()},
        FigureName.KV_CACHE: known_or_not(servers.kv_cache),
        FigureName.PREFIX_CACHE_HIT_RATE: known_or_not(servers.hit_rate),
    }


class _Servers:
    """The figures of some servers. Each raises NotKnownError where it is not known."""

    def __init__(self, samples: ServerSamples) -> None:
        self._samples, self._scrapes = samples, samples.scrapes
        self._by_name: dict[str, list[Series]] = {}
        for series in samples.series:
            self._by_name.setdefault(series.labels.get("__name__", ""), []).append(series)
        self._histograms: dict[tuple[str, ...], LatencyCounts] = {}
        end, longest = self._scrapes.end, samples.max_gap_seconds
        self._current = [
            target
            for target, seen in self._scrapes.up.items()
            if end - seen[-1][0] <= (self._scrapes.longest(target, 0.0) or longest)
        ]

    def request_rate(self) -> Figure:
        """Requests of users in a second."""
        return self._figure(self._per_second(self._requests()))

    def error_rate(self) -> Figure:
        """The share of requests that failed; `upper` is what cannot be excluded."""
        found = self._requests()
        rejections = self._first(REJECTIONS)
        counts = counted_requests(
            SERVERS, self._samples.counter, self._scrapes, found, (), rejections, ()
        )
        if counts.unknown or not counts.total:
            raise NotKnownError(counts.unknown or "no request in this time")
        upper = min(1.0, counts.failures_at_most / counts.total)
        share = min(1.0, counts.failures / counts.total)
        return self._figure(share, upper=upper if upper > share else None)

    def percentile(self, histogram: tuple[str, ...], percentile: int) -> Figure:
        """The bucket that a percentile lies in: nothing is made up within it."""
        counts = self._grown(histogram)
        cumulative = sorted(counts.cumulative.items())
        total = counts.total
        if len(cumulative) < 2:
            raise NotKnownError(f"the servers' buckets of {histogram[0]} have no bound in common")
        if any(later < earlier for (_, earlier), (_, later) in pairwise(cumulative)):
            raise NotKnownError(f"the buckets of {histogram[0]} contradict each other")
        if not total:
            raise NotKnownError("no request in this time")
        rank = math.ceil(percentile * total / 100)
        lower = max((bound for bound, n in cumulative if n < rank), default=0.0)
        return self._figure(lower, upper=min(bound for bound, n in cumulative if n >= rank))

    def rate(self, names: tuple[str, ...]) -> Figure:
        """The increase of a counter in a second, all servers added up."""
        return self._figure(self._per_second(self._counters(names)))

    def gauge(self, names: tuple[str, ...], combine: Callable[[Iterable[float]], float]) -> Figure:
        """The newest values of a gauge, those of all servers in one."""
        every = self._sure(self._first(names, now=True), names[0])
        values = [s.samples[-1][1] for s in every if target_of(s) in self._current]
        if not values or min(values) < 0:
            raise NotKnownError(f"{names[0]} is {'below 0' if values else 'of no server'}")
        return self._figure(combine(values))

    def kv_cache(self) -> Figure:
        """The used share of the KV cache of the server whose cache is fullest."""
        found = self.gauge(KV_CACHE_USAGE, max)
        if found.value is None or found.value > 1:
            raise NotKnownError(f"{KV_CACHE_USAGE[0]} is {found.value}, and no share")
        return found

    def hit_rate(self) -> Figure:
        """The share of tokens looked up in the prefix cache that were in it."""
        hits, queries = (
            sum(grown.amount for grown in self._scrapes.increases(self._counters(names)))
            for names in (_HITS, _QUERIES)
        )
        if not queries:
            raise NotKnownError("no token was looked up in this time")
        if hits > queries:
            raise NotKnownError(f"{hits:g} hits of {queries:g} lookups")
        return self._figure(hits / queries)

    def _figure(self, value: float, *, upper: float | None = None) -> Figure:
        newest = [times[-1] for each in self._current if (times := self._scrapes.scraped(each))]
        if not newest:
            raise NotKnownError("no server was scraped")
        at = datetime.fromtimestamp(min(newest), UTC)
        return Figure(value=value, upper=upper, source=self._samples.source, at=at)

    def _grown(self, histogram: tuple[str, ...]) -> LatencyCounts:
        if histogram not in self._histograms:
            found = self._counters(buckets_of(histogram))
            grown = grown_histogram(histogram[0], self._scrapes, found, (), ())
            if grown.unknown:
                raise NotKnownError(grown.unknown)
            self._histograms[histogram] = grown
        return self._histograms[histogram]

    def _per_second(self, found: Sequence[Series]) -> float:
        amounts: dict[Target, float] = {}
        for series, grown in zip(found, self._scrapes.increases(found), strict=True):
            target = target_of(series)
            amounts[target] = amounts.get(target, 0.0) + grown.amount
        return sum(amount / self._seconds(target) for target, amount in amounts.items())

    def _seconds(self, target: Target) -> float:
        """The time in which a server's increase was counted."""
        scrapes = self._scrapes
        times = scrapes.scraped(target)
        born = max((start for _, start in scrapes.started.get(target, ())), default=0.0)
        begin = max((at for at in times if at <= scrapes.start), default=times[0] if times else 0)
        if begin > scrapes.start and born >= scrapes.start:
            begin = scrapes.start  # it has counted from nothing
        end = times[-1] if times and target in self._current else scrapes.end
        if end <= begin:
            raise NotKnownError(f"{name_of(target)} has been scraped only once in this time")
        return end - begin

    def _requests(self) -> list[Series]:
        """The series of the counter of requests: a server that has had none yet has no series."""
        self._ensure_rates()
        return self._sure(self._samples.requests, self._samples.counter.metric, lazy=True)

    def _counters(self, names: Sequence[str]) -> list[Series]:
        """The series of a counter, by the newest of its names that each server has."""
        self._ensure_rates()
        return self._sure(self._first(names), names[0])

    def _ensure_rates(self) -> None:
        if self._samples.no_rates:
            raise NotKnownError(self._samples.no_rates)

    def _first(self, names: Sequence[str], *, now: bool = False) -> list[Series]:
        """The series of the first name that each server has; `now` none of an earlier process."""
        found: list[Series] = []
        known: set[Target] = set()
        for name in names:
            own = [s for s in self._by_name.get(name, ()) if target_of(s) not in known]
            own = [s for s in own if not (now and self._is_over(s))]
            found += own
            known |= set(map(target_of, own))
        return found

    def _is_over(self, series: Series) -> bool:
        """True if it is of a process that another has followed."""
        newest = series.samples[-1][0] if series.samples else math.inf
        return any(at > newest for at in self._scrapes.changes(target_of(series)))

    def _sure(self, found: Sequence[Series], name: str, *, lazy: bool = False) -> list[Series]:
        if not found:
            raise NotKnownError(f"no series of {name}")
        having = set(map(target_of, found))
        missing = [name_of(each) for each in self._current if each not in having]
        if missing and not lazy:
            raise NotKnownError(f"{missing[0]} has no series of {name}")
        for series in found:
            target, newest = target_of(series), series.samples[-1][0] if series.samples else 0.0
            goes_on = target in self._current and max(self._scrapes.scraped(target)) > newest
            if goes_on and not self._is_over(series):
                raise NotKnownError(f"{name_of(target)} has no number for {name} now")
        if doubt := unattributed(found, self._scrapes):
            raise NotKnownError(doubt)
        return list(found)
