"""Verdicts on a load that was looked at while it ran, and ended as soon as all were decided.

Each is reached by a sequential test (`vllm_rollout.judge.sequential`) that takes the requests in
the order of sending, one by one, so that what it says of a finished load is what it said while
the load ran. A pass is wrong with a chance of at most 1 - `confidence`, a fail with one of at most
1 - `fail_confidence`, however often it was looked at.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from vllm_rollout.judge.goodput import GoodputLimits, meets_limits
from vllm_rollout.judge.sequential import SequentialPercentile, SequentialRate
from vllm_rollout.judge.verdict import Outcome, Verdict


def watched_rate(
    failed: Iterable[bool],
    *,
    limit: float,
    confidence: float,
    fail_confidence: float,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge which requests `failed`, in the order of sending.

    Raises:
        ValueError: what `SequentialRate` raises.
    """
    test = SequentialRate(
        limit=limit,
        confidence=confidence,
        fail_confidence=fail_confidence,
        rate_per_second=rate_per_second,
    )
    verdict = test.update(0, 0)
    for each in failed:
        verdict = test.update(int(each), 1)
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            break
    return verdict


def watched_percentile(
    latencies_seconds: Iterable[float],
    *,
    percentile: float,
    limit_seconds: float,
    confidence: float,
    fail_confidence: float,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge latencies in the order of sending; one without an answer is infinite.

    The figures of the verdict are shares of late requests.

    Raises:
        ValueError: what `SequentialPercentile` raises.
    """
    test = SequentialPercentile(
        percentile=percentile,
        limit_seconds=limit_seconds,
        confidence=confidence,
        fail_confidence=fail_confidence,
        rate_per_second=rate_per_second,
    )
    verdict = test.update([])
    for seconds in latencies_seconds:
        verdict = test.update([], 1) if seconds == math.inf else test.update([seconds])
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            break
    return verdict


def watched_goodput(
    limits: GoodputLimits,
    *,
    target: float,
    confidence: float,
    fail_confidence: float,
    ttft_seconds: ArrayLike | None = None,
    inter_token_seconds: ArrayLike | None = None,
    latency_seconds: ArrayLike | None = None,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge which requests meet every limit, in the order of sending.

    Raises:
        ValueError: what `meets_limits` and `SequentialRate` raise.
    """
    met = meets_limits(
        limits,
        ttft_seconds=ttft_seconds,
        inter_token_seconds=inter_token_seconds,
        latency_seconds=latency_seconds,
    )
    missed = watched_rate(
        np.logical_not(met).tolist(),
        limit=1 - target,
        confidence=confidence,
        fail_confidence=fail_confidence,
        rate_per_second=rate_per_second,
    )
    return replace(missed, reason=f"of missing a limit: {missed.reason}")
