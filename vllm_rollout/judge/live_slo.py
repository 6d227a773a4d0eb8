"""SLO verdicts on users' own requests: one for each source that counts them, one for latency."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from vllm_rollout.judge.buckets import bounds_around, bucket_verdict, limit_inside_a_bucket
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.model.request_counts import LatencyCounts, RequestCounts
from vllm_rollout.model.verdict import Outcome, Verdict, check
from vllm_rollout.policy import Policy

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
        if counted.refused:
            beside = f"{counted.refused:,} more were answered 4xx, which `failed` does not count"
            verdict = replace(verdict, reason=f"{verdict.reason}; {beside}")
        yield _with_lag(verdict, counted.lag)


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
    return _with_lag(verdict, counted.lag)


def decided_by_own_load(
    by_buckets: Verdict, counted: LatencyCounts, own: Callable[[], Verdict | None]
) -> Verdict:
    """The verdict, decided by a load's `own` measurement where only the buckets were too wide.

    That is where the limit lies inside a bucket, and the percentile of the users' requests and of
    the load's are both in it: then the load is like the users' requests, as far as they tell. A
    load whose percentile is in another bucket is not, and decides nothing. None is no load.
    """
    limit = by_buckets.limit
    if by_buckets.outcome is not Outcome.INCONCLUSIVE or limit is None:
        return by_buckets
    below, above = bounds_around(counted.cumulative, limit)
    if below == limit or math.isinf(above) or by_buckets.upper != above:
        return by_buckets
    measured = own()
    if measured is None:
        return by_buckets
    if measured.measured is None or not (below or 0.0) < measured.measured <= above:
        note = f"the load's own requests are not like the users': {measured.reason}"
        return replace(by_buckets, reason=f"{by_buckets.reason}; {note}")
    note = f"by the load's own requests, as the buckets do not decide: {by_buckets.reason}"
    return replace(measured, reason=f"{measured.reason}, {note}")


def undecided_limits(policy: Policy, environment: str, bounds: Collection[float]) -> list[str]:
    """Return which of the policy's limits a server's buckets cannot decide, and which they could.

    Without bounds nothing is known of them.
    """
    live, slo = policy.environments[environment].gates.live_metrics, policy.watch.slo
    trigger = policy.triggers.latency
    limits = {
        "watch.slo": (slo.percentile, slo.limit_seconds),
        "triggers.latency": (trigger.percentile, trigger.above_seconds),
    }
    if live is not None:
        limits = {"live_metrics": (live.percentile, live.limit_seconds), **limits}
    return [
        f"{name} (P{percentile:g}): {inside}"
        for name, (percentile, limit) in limits.items()
        if bounds and (inside := limit_inside_a_bucket(bounds, limit))
    ]


def _with_lag(verdict: Verdict, lag: str) -> Verdict:
    """The verdict, whose reason says what is late, and by how much."""
    return (
        replace(verdict, reason=f"{verdict.reason}; {lag}: counted until then") if lag else verdict
    )
