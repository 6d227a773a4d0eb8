"""Requests of a deployment counted in a window of time. What is not known has no figure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of time in which something was not scraped: `what` is a target, or all of them."""

    what: str
    start: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.start).total_seconds()

    def __str__(self) -> str:
        return f"no scrape of {self.what} from {self.start:%H:%M:%S} to {self.end:%H:%M:%S %Z}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """Requests of a window as one source counted them.

    `failures` is what is shown at least, `failures_at_most` what cannot be excluded: vLLM counts a
    streamed request that it turned away as answered, and only its counter of rejections shows it,
    which holds the others too. `unknown` says why nothing is known; then the counts are 0.
    `refused` have a status 4xx that the policy does not count as a failure: a client's fault, or
    the build's. `lag` says by how much the newest samples were late; the counts end there.
    `interval_seconds` is the time from scrape to scrape.
    """

    source: str
    total: int = 0
    refused: int = 0
    failures: int = 0
    failures_at_most: int = 0
    resets: int = 0
    gaps: tuple[Gap, ...] = ()
    unknown: str = ""
    lag: str = ""
    interval_seconds: float = 0.0

    @property
    def error_rate(self) -> float | None:
        """Share of failed requests; None where nothing is known or no request came."""
        if self.unknown or self.total == 0:
            return None
        return min(1.0, self.failures / self.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """The same window by every source that is configured: the model servers, a gateway."""

    sources: tuple[RequestCounts, ...]

    @property
    def unknown(self) -> str:
        """Reason for a source without a figure, or empty."""
        return "; ".join(
            f"{each.source}: {each.unknown or 'no request'}"
            for each in self.sources
            if each.error_rate is None
        )

    def against(self, limit: float, *, at_least: bool = False, fewest: int = 1) -> float | None:
        """The highest rate; None unless it is above `limit` or every source has a figure.

        With `at_least` a rate of the limit itself counts as above. A source with fewer than
        `fewest` requests has no figure.
        """
        rates = [each.error_rate if each.total >= fewest else None for each in self.sources]
        known = [rate for rate in rates if rate is not None]
        highest = max(known, default=None)
        if highest is None:
            return None
        above = highest > limit or (at_least and highest == limit)
        return highest if above or len(known) == len(rates) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCounts:
    """A histogram's growth in a window: requests at or below each bound, as `bucket_verdict` takes.

    `unknown` says why nothing is known; then it is empty.
    """

    cumulative: Mapping[float, int] = field(default_factory=dict)
    resets: int = 0
    gaps: tuple[Gap, ...] = ()
    unknown: str = ""
    lag: str = ""

    @property
    def total(self) -> int:
        """Number of requests."""
        return self.cumulative.get(math.inf, 0)

    def above(self, limit_seconds: float) -> tuple[float, float] | None:
        """The share of requests slower than the limit: (at least, at most).

        The two differ where the limit lies inside a bucket. None where nothing is known.
        """
        if self.unknown or self.total == 0:
            return None
        below = [n for bound, n in self.cumulative.items() if bound <= limit_seconds]
        within = [n for bound, n in self.cumulative.items() if bound >= limit_seconds]
        return (
            1 - min(within, default=self.total) / self.total,
            1 - max(below, default=0) / self.total,
        )

    def percentile_above(self, percentile: float, limit_seconds: float) -> bool | None:
        """True if the percentile is above the limit; None where the buckets cannot decide."""
        share = self.above(limit_seconds)
        if share is None:
            return None
        allowed = 1 - percentile / 100
        if share[0] > allowed:
            return True
        return False if share[1] <= allowed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTimes:
    """Users' answered requests by their time over HTTP, counted among all other requests.

    `at_best` as if whatever else may have been slow was, `at_worst` as if all slow ones were
    users'.
    """

    at_best: LatencyCounts
    at_worst: LatencyCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptime:
    """When the deployment's servers were scraped: (Unix time, how many were up), and restarts."""

    moments: tuple[tuple[float, int], ...]
    restarts: tuple[float, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCounts:
    """Requests of a window of time, as Prometheus counted them."""

    rates: ErrorRates
    latency: LatencyCounts

    @property
    def unknown(self) -> str:
        """Gaps in what is known of the window, and why; empty where all is known."""
        rates, latency = self.rates.unknown, self.latency.unknown
        return rates if latency in rates else "; ".join(filter(None, (rates, latency)))


def nothing_known(why: str) -> LiveCounts:
    """Counts that have no figure."""
    source = RequestCounts(source="Prometheus", unknown=why)
    return LiveCounts(rates=ErrorRates(sources=(source,)), latency=LatencyCounts(unknown=why))
