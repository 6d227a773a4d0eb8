"""SLO verdicts on users' own requests: one for each source that counts them, one for latency."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.model.verdict import Verdict, check

_REMEDY = "See that Prometheus scrapes the deployment; its labels are `prometheus.labels`."


class CountedRequests(Protocol):
    """Requests as one source counted them; `unknown` says why there is no figure, or is empty."""

    @property
    def source(self) -> str:
        """The source of the counts."""

    @property
    def total(self) -> int:
        """All of them."""

    @property
    def failures(self) -> int:
        """Those that failed, at least."""

    @property
    def failures_at_most(self) -> int:
        """Those that may have."""

    @property
    def unknown(self) -> str:
        """Reason for a missing figure."""


class CountedLatency(Protocol):
    """Requests by latency; `unknown` as above."""

    @property
    def cumulative(self) -> Mapping[float, int]:
        """As `bucket_verdict` takes it."""

    @property
    def resets(self) -> int:
        """Resets of the counters."""

    @property
    def unknown(self) -> str:
        """Reason for a missing figure."""


def error_rate_verdicts(
    sources: Iterable[CountedRequests], *, limit: float, confidence: float
) -> Iterator[Verdict]:
    """The verdict on each source's error rate; what is not known is inconclusive."""
    for counted in sources:
        if counted.unknown:
            yield check(None, f"{counted.source}: {counted.unknown}", remedy=_REMEDY)
            continue
        yield rate_verdict_between(
            counted.failures,
            counted.failures_at_most,
            counted.total,
            limit=limit,
            confidence=confidence,
        )


def latency_verdict(
    counted: CountedLatency, *, percentile: float, limit_seconds: float, confidence: float
) -> Verdict:
    """The verdict on a percentile of latency; what is not known is inconclusive."""
    if counted.unknown:
        return check(None, counted.unknown, remedy=_REMEDY)
    return bucket_verdict(
        counted.cumulative,
        percentile=percentile,
        limit_seconds=limit_seconds,
        confidence=confidence,
        resets=counted.resets,
    )
