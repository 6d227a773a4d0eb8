"""SLO verdicts on users' own requests: one for each source that counts them, one for latency."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from vllm_rollout.judge.buckets import bounds_around, bucket_verdict, limit_inside_a_bucket
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.model.request_counts import AnswerTimes, LatencyCounts, RequestCounts
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


def decided_by_answer_times(
    by_buckets: Verdict,
    counted: LatencyCounts,
    answers: Callable[[], AnswerTimes],
    *,
    percentile: float,
    confidence: float,
) -> Verdict:
    """The verdict, decided by the times of users' answers over HTTP where the limit lies inside a
    bucket of the engine's latencies.

    Those have other bounds. It passes where it would if all slow requests were users', and fails
    where it would if none were that may be others'. Times that contradict the buckets decide
    nothing.
    """
    limit = by_buckets.limit
    if by_buckets.outcome is not Outcome.INCONCLUSIVE or limit is None or counted.unknown:
        return by_buckets
    if bounds_around(counted.cumulative, limit)[0] == limit:
        return by_buckets
    times = answers()
    worst, best = (
        latency_verdict(each, percentile=percentile, limit_seconds=limit, confidence=confidence)
        for each in (times.at_worst, times.at_best)
    )
    found = worst if worst.passed else best
    if found.outcome is Outcome.INCONCLUSIVE or (found is best and best.passed):
        note = f"nor do the times of answers over HTTP decide: {worst.reason}"
        return replace(by_buckets, reason=f"{by_buckets.reason}; {note}")
    if not _overlap(by_buckets, found):
        note = f"the times of answers over HTTP contradict them: {found.reason}"
        return replace(by_buckets, reason=f"{by_buckets.reason}; {note}")
    note = f"of whole answers over HTTP, as those of the engine do not decide: {by_buckets.reason}"
    return replace(found, reason=f"{found.reason}, {note}")


def _overlap(one: Verdict, other: Verdict) -> bool:
    """Return whether a percentile may lie between the bounds of both."""
    lower = max(one.lower or 0.0, other.lower or 0.0)
    uppers = [each.upper for each in (one, other) if each.upper is not None]
    return lower < min(uppers, default=math.inf)


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


def undecided_limits(
    policy: Policy, environment: str, bounds: Collection[float], answers: Collection[float] = ()
) -> list[str]:
    """Return which of the policy's limits a server's buckets cannot decide, and which they could.

    `bounds` are those of the engine's latencies, `answers` those of whole answers over HTTP, by
    which `live_metrics` may go. Without bounds nothing is known of them.
    """
    live, slo = policy.environments[environment].gates.live_metrics, policy.watch.slo
    trigger = policy.triggers.latency
    limits = {
        "watch.slo": (slo.percentile, slo.limit_seconds),
        "triggers.latency": (trigger.percentile, trigger.above_seconds),
    }
    undecided = [
        f"{name} (P{percentile:g}): {inside}; the watch's own probes decide it"
        for name, (percentile, limit) in limits.items()
        if bounds and (inside := limit_inside_a_bucket(bounds, limit))
    ]
    if live is not None and bounds:
        inside = limit_inside_a_bucket({*bounds, *answers}, live.limit_seconds)
        undecided[:0] = [f"live_metrics (P{live.percentile:g}): {inside}"] if inside else []
    return undecided


def _with_lag(verdict: Verdict, lag: str) -> Verdict:
    """The verdict, whose reason says what is late, and by how much."""
    return (
        replace(verdict, reason=f"{verdict.reason}; {lag}: counted until then") if lag else verdict
    )
