"""SLO verdicts on users' own requests: one for each source that counts them, one for latency."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.model.request_counts import LatencyCounts, RequestCounts
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Verdict, check

_REMEDY = "See that Prometheus scrapes the deployment; its labels are `prometheus.labels`."


def error_rate_verdicts(
    sources: Iterable[RequestCounts], *, limit: float, confidence: float
) -> Iterator[Verdict]:
    """The verdict on each source's error rate; what is not known is inconclusive."""
    for counted in sources:
        if counted.unknown:
            yield check(None, f"{counted.source}: {counted.unknown}", remedy=_REMEDY, n=0)
            continue
        verdict = rate_verdict_between(
            counted.failures,
            counted.failures_at_most,
            counted.total,
            limit=limit,
            confidence=confidence,
        )
        yield _with_lag(verdict, counted.lag_seconds)


def latency_verdict(
    counted: LatencyCounts, *, percentile: float, limit_seconds: float, confidence: float
) -> Verdict:
    """The verdict on a percentile of latency; what is not known is inconclusive."""
    if counted.unknown:
        return check(None, counted.unknown, remedy=_REMEDY, n=0)
    verdict = bucket_verdict(
        counted.cumulative,
        percentile=percentile,
        limit_seconds=limit_seconds,
        confidence=confidence,
        resets=counted.resets,
    )
    return _with_lag(verdict, counted.lag_seconds)


def _with_lag(verdict: Verdict, seconds: float) -> Verdict:
    """The verdict, whose reason says that the newest samples are so late."""
    if not seconds:
        return verdict
    late = f"Prometheus lags by {format_value(round(seconds), 's')}: counted until then"
    return replace(verdict, reason=f"{verdict.reason}; {late}")
