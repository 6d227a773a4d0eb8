"""Summary of a load run for a report: percentiles, a histogram and the course over time."""

import math
from collections.abc import Callable, Iterable, Sequence

from vllm_rollout.model.load_figures import ClassSummary, LatencyBin, LoadMoment, LoadSummary
from vllm_rollout.model.load_result import MOST_UNKNOWN, LoadResult, RequestRecord
from vllm_rollout.model.percentiles import percentile_of

_BINS = 60
_MOST_SLICES = 120
# A slice's P95 is its slowest request when it holds fewer than this.
_REQUESTS_PER_SLICE = 20
_SHORTEST_SECONDS = 1e-6
# Nearer than this the edges of bins between two latencies are rounding.
_ALIKE = 1e-9


def summarize_load(
    result: LoadResult, *, stopped: str = "", requests_file: str = ""
) -> LoadSummary:
    """Sum up `result` for display; no verdict is reached on this.

    Percentiles are exact (nearest rank) and over the answered requests alone; the others are in
    `failures`. A figure nobody could measure is None. Tokens per second are those of answered
    requests, from the first intended send to the last answer. `stopped` and `requests_file` are
    passed on.
    """
    answered = [r for r in result.requests if r.ok]
    latencies = _sorted(r.latency_seconds for r in answered)
    ttfts = _measured(answered, lambda r: r.ttft_seconds)
    return LoadSummary(
        rate_per_second=result.plan.mean_rate_per_second or result.offered_per_second or 0.0,
        duration_seconds=result.judged_seconds,
        total=result.total,
        failures=result.failures,
        failures_by_kind=result.failures_by_kind,
        failure_kinds=result.failure_kinds,
        p50_seconds=percentile_of(latencies, 50),
        p95_seconds=percentile_of(latencies, 95),
        p99_seconds=percentile_of(latencies, 99),
        ttft_p50_seconds=percentile_of(ttfts, 50),
        ttft_p95_seconds=percentile_of(ttfts, 95),
        output_tokens_per_second=_tokens_per_second(result, answered),
        lag_p99_seconds=result.lag_percentile(99),
        histogram=_histogram(latencies),
        timeline=_timeline(result),
        incomplete=result.incomplete,
        stopped=stopped,
        offered_per_second=result.offered_per_second,
        itl_p50_seconds=result.gaps.p50_seconds,
        itl_p95_seconds=result.gaps.p95_seconds,
        itl_p99_seconds=result.gaps.p99_seconds,
        generator_cpu=result.generator_cpu,
        workers=result.plan.workers,
        unsent=result.unsent,
        classes=tuple(_class(result, each.name) for each in result.plan.classes),
        requests_file=requests_file,
    )


def _class(result: LoadResult, name: str) -> ClassSummary:
    requests = [r for r in result.requests if r.request_class == name]
    answered = [r for r in requests if r.ok]
    latencies = _sorted(r.latency_seconds for r in answered)
    ttfts = _measured(answered, lambda r: r.ttft_seconds)
    itls = _measured(answered, lambda r: r.itl_seconds)
    return ClassSummary(
        name=name,
        total=len(requests),
        failures=len(requests) - len(answered),
        p50_seconds=percentile_of(latencies, 50),
        p95_seconds=percentile_of(latencies, 95),
        ttft_p50_seconds=percentile_of(ttfts, 50),
        ttft_p95_seconds=percentile_of(ttfts, 95),
        itl_p50_seconds=percentile_of(itls, 50),
        itl_p95_seconds=percentile_of(itls, 95),
        output_tokens_per_second=_tokens_per_second(result, answered),
    )


def _sorted(values: Iterable[float | None]) -> list[float]:
    return sorted(value for value in values if value is not None)


def _measured(
    answered: Sequence[RequestRecord], seconds: Callable[[RequestRecord], float | None]
) -> list[float]:
    """Times of the requests in rising order; none where the generator's stalls hide too many."""
    hidden = sum(r.stalled_seconds > 0 and seconds(r) is None for r in answered)
    return [] if hidden > MOST_UNKNOWN * len(answered) else _sorted(map(seconds, answered))


def _tokens_per_second(result: LoadResult, answered: Sequence[RequestRecord]) -> float:
    ends = _sorted(r.end for r in answered)
    if not ends:
        return 0.0
    seconds = ends[-1] - result.requests[0].intended
    tokens = sum(r.completion_tokens for r in answered)
    return tokens / seconds if seconds > 0 else 0.0


def _histogram(ordered: Sequence[float]) -> tuple[LatencyBin, ...]:
    """Bins of equal width on a logarithmic axis, from the fastest request to the slowest."""
    if not ordered:
        return ()
    lowest = max(ordered[0], _SHORTEST_SECONDS)
    highest = max(ordered[-1], lowest)
    if highest / lowest < 1 + _ALIKE:
        return (LatencyBin(upper_seconds=highest, count=len(ordered)),)
    per_bin = math.log(highest / lowest) / _BINS
    counts = [0] * _BINS
    for latency in ordered:
        rank = math.ceil(math.log(max(latency, lowest) / lowest) / per_bin) - 1
        counts[min(max(rank, 0), _BINS - 1)] += 1
    uppers = [lowest * math.exp(per_bin * (i + 1)) for i in range(_BINS - 1)] + [highest]
    return tuple(
        LatencyBin(upper_seconds=upper, count=count)
        for upper, count in zip(uppers, counts, strict=True)
    )


def _timeline(result: LoadResult) -> tuple[LoadMoment, ...]:
    """Slices of equal length by intended send time, as many as hold enough requests each."""
    if not result.requests:
        return ()
    plan = result.plan
    begin = min(plan.warmup_seconds, result.requests[0].intended)
    end = max(plan.warmup_seconds + plan.duration_seconds, result.requests[-1].intended)
    count = min(max(result.total // _REQUESTS_PER_SLICE, 1), _MOST_SLICES)
    length = (end - begin) / count
    slices: list[list[RequestRecord]] = [[] for _ in range(count)]
    for request in result.requests:
        index = int((request.intended - begin) / length) if length > 0 else 0
        slices[min(index, count - 1)].append(request)
    return tuple(_moment(begin + i * length, requests) for i, requests in enumerate(slices))


def _moment(at_seconds: float, requests: Sequence[RequestRecord]) -> LoadMoment:
    latencies = _sorted(r.latency_seconds for r in requests if r.ok)
    return LoadMoment(
        at_seconds=at_seconds,
        requests=len(requests),
        failures=sum(not r.ok for r in requests),
        p50_seconds=percentile_of(latencies, 50),
        p95_seconds=percentile_of(latencies, 95),
    )
