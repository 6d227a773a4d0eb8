"""Servers as Prometheus scrapes them, and a Prometheus that has those samples."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
from support.scripted_prometheus import NOW, client, results

from vllm_rollout.judge.live_slo import error_rate_verdicts, latency_verdict
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.observe.prometheus import Prometheus, Series

LABELS = {"namespace": "system", "service": "llama-2-7b-production", "job": "vllm"}
NEW = (0.3, 1.0, 1.5, 2.5, 5.0, 10.0, 60.0, 120.0, 960.0, math.inf)
MIDDLE = (0.3, 1.0, 1.5, 2.5, 5.0, 10.0, 60.0, math.inf)
HTTP = (1.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, math.inf)
OLD = (1.0, 2.5, 5.0, 10.0, 60.0, math.inf)

World = dict[tuple[tuple[str, str], ...], dict[float, float]]
"""Samples of each series, its name in `__name__`."""


@dataclass
class Pod:
    """A server: times are seconds before the end of the window, shares are of its requests."""

    address: str
    born: float = 86400
    gone: float = 0
    ready: float = math.inf
    """First scraped then."""
    failed_since: float | None = None
    """Exported as `_created`."""
    rate: float = 2.0
    bad: Callable[[float], float] = lambda ago: 0.0
    """Share of 5xx among the requests that it got so long ago."""
    seconds: float = 1.2
    slow_since: float = 0
    buckets: Sequence[float] = NEW
    restarted: float | None = None
    buckets_since: Sequence[float] = ()
    down: tuple[float, float] = (-1, -1)
    labels: dict[str, str] = field(default_factory=dict)
    counters: Callable[[float], dict[str, str]] = lambda ago: {}
    """Labels that the counters, but not `up`, have at a time."""
    le: Callable[[float, float], str] = lambda ago, bound: (
        "+Inf" if math.isinf(bound) else f"{bound}"
    )
    starts: bool = True
    polls: float | None = None
    """So many polls of /v1/models a second; with it, there are the histograms of HTTP."""

    def scraped(self, end: float, *, offset: float = 0, every: float = 15, **labels: str) -> World:
        """Its scrapes of the last 18 minutes by one Prometheus, which adds `labels`."""
        world: World = {}
        own = {**LABELS, "instance": self.address, **self.labels, **labels}
        counted_since, step, every_one, failed, slow = math.nan, 0.0, 0.0, 0.0, 0.0

        def put(metric: str, ago: float, value: float, **more: str) -> None:
            key = series_key(metric, **{**own, **more})
            world.setdefault(key, {})[round(end - ago, 3)] = value

        for i in range(int(1080 / every)):
            ago = 1080 - offset - i * every
            if not self.gone <= ago <= min(self.born, self.ready):
                continue
            if self.down[1] < ago <= self.down[0]:
                put("up", ago, 0)
                continue
            again = self.restarted is not None and ago <= self.restarted
            born = self.restarted if again and self.restarted else self.born
            put("up", ago, 1)
            put("vllm:kv_cache_usage_perc", ago, 0.5)
            if self.starts:
                put("process_start_time_seconds", ago, round(end - born, 3))
            if born != counted_since:
                # Of what came before the first scrape, the last eighteen minutes are enough.
                counted_since, step = born, min(born, 1080.0)
                every_one, failed, slow = self.rate * (born - step), 0.0, 0.0
            while step - 5 > ago:
                bad = self.rate * 5 * self.bad(step)
                every_one, failed = every_one + self.rate * 5, failed + bad
                slow += (self.rate * 5 - bad) * (step <= self.slow_since)
                step -= 5
            more = self.counters(ago)
            handler = {"handler": "/v1/completions", **more}
            put("http_requests_total", ago, round(every_one - failed), status="2xx", **handler)
            if failed:
                put("http_requests_total", ago, round(failed), status="5xx", **handler)
            if failed and self.failed_since:
                since = born if again else self.failed_since
                put("http_requests_created", ago, round(end - since), status="5xx", **handler)
            for bound in self.buckets_since if again and self.buckets_since else self.buckets:
                quick = every_one - failed - slow if self.seconds <= bound else 0
                count = quick + (slow if bound >= 12 else 0)
                name = "vllm:e2e_request_latency_seconds_bucket"
                put(name, ago, round(count), le=self.le(ago, bound), **more)
            if self.polls is not None:
                self._put_http(put, ago, every_one, failed, slow, self.polls * (1080 - ago))
        return world

    def _put_http(
        self,
        put: Callable[..., None],
        ago: float,
        every_one: float,
        failed: float,
        slow: float,
        polls: float,
    ) -> None:
        """What the HTTP server counts: failed requests and polls are quick."""
        answered = every_one - failed - slow

        def within(bound: float) -> int:
            theirs = answered * (self.seconds <= bound) + slow * (bound >= 12)
            return round(theirs + failed + polls)

        for bound in HTTP:
            name = "http_request_duration_highr_seconds_bucket"
            put(name, ago, within(bound), le=str(bound).replace("inf", "+Inf"))
        name = "http_request_duration_seconds_bucket"
        for bound in (1.0, math.inf):
            le = str(bound).replace("inf", "+Inf")
            put(name, ago, within(bound) - round(polls), le=le, handler="/v1/completions")
            put(name, ago, round(polls), le=le, handler="/v1/models")


def four(**options: Any) -> list[Pod]:
    return [Pod(f"10.0.0.{i}:8000", **options) for i in range(1, 5)]


def outage(ago: float) -> float:
    """Nearly all requests of the last fifteen minutes fail."""
    return 0.98 if ago <= 900 else 0.0


def live_gate(
    found: DeploymentMetrics, window: timedelta, *, end: datetime = NOW
) -> tuple[str, str, str]:
    """The outcomes of the gate `live_metrics`, and its reasons."""
    (errors,) = error_rate_verdicts(
        found.error_rates(window, end=end).sources, limit=0.01, confidence=0.95
    )
    slow = latency_verdict(
        found.latency(window, end=end), percentile=95, limit_seconds=2.5, confidence=0.95
    )
    return errors.outcome, slow.outcome, f"{errors.reason}; {slow.reason}"


def series_key(metric: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"__name__": metric, **labels}.items()))


def merged(*worlds: World) -> World:
    """The samples of all of them."""
    whole: World = {}
    for world in worlds:
        for key, samples in world.items():
            whole[key] = {**whole.get(key, {}), **samples}
    return whole


def scripted(world: Callable[[str], World]) -> Prometheus:
    """A Prometheus that answers range questions from the world that it asks for each."""

    def answer(request: httpx.Request) -> httpx.Response:
        form = dict(httpx.QueryParams(request.content.decode()))
        if form["query"] == "vector(time())":
            now = Series({}, ((NOW.timestamp(), NOW.timestamp()),))
            return httpx.Response(200, json=results(now))
        asked = re.fullmatch(r"([\w:]*)\{(.*)\}\[(\d+)ms\]", form["query"])
        assert asked, form["query"]
        metric, labels, milliseconds = asked.groups()
        exact = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if metric:
            exact["__name__"] = metric
        patterns = [(name, re.compile(p)) for name, p in re.findall(r'(\w+)=~"([^"]*)"', labels)]
        end = float(form["time"])
        start = end - int(milliseconds) / 1000
        found = (
            Series(dict(key), tuple(sorted(taken.items())))
            for key, samples in world(metric).items()
            if exact.items() <= dict(key).items()
            if metric or all(p.fullmatch(dict(key).get(name, "")) for name, p in patterns)
            if (taken := {t: v for t, v in samples.items() if start < t <= end})
        )
        return httpx.Response(200, json=results(*found))

    return client(answer)
