"""SLO verdicts on users' own requests: one for each source that counts them, one for latency."""

from collections.abc import Iterable, Iterator

from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.model.request_counts import LatencyCounts, RequestCounts
from vllm_rollout.model.verdict import Verdict, check

_REMEDY = "See that Prometheus scrapes the deployment; its labels are `prometheus.labels`."


def error_rate_verdicts(
    sources: Iterable[RequestCounts], *, limit: float, confidence: float
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
    counted: LatencyCounts, *, percentile: float, limit_seconds: float, confidence: float
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
