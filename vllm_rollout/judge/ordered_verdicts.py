"""Verdicts on a finished load in order of time, corrected for bursts.

`rate_verdict` and `percentile_verdict` know no order and take requests to be independent. These
look for bursts first. Where there are any, n requests are worth n / block independent ones
(`judge.effective_sample_size`), and the exact bounds are those of so many: Clopper–Pearson with an
effective sample size (Korn & Graubard 1998, Survey Methodology 24:193) and order statistics at
the ranks it gives (Woodruff 1952, JASA 47:635).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vllm_rollout.judge.binomial import fail_p_value, percentile_ranks, share_bounds
from vllm_rollout.judge.effective_sample_size import block_length, burst_length, check_burst
from vllm_rollout.judge.goodput import GoodputLimits, goodput_verdict, meets_limits
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.sample_size import more_load, requests_to_decide
from vllm_rollout.model.units import format_value
from vllm_rollout.model.verdict import Outcome, Verdict


def rate_verdict_in_order(
    failed: Sequence[bool] | NDArray[np.bool_],
    *,
    limit: float,
    confidence: float,
    burst: int = 1,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge which requests `failed`, in the order of sending, as `rate_verdict` judges how many.

    At least `burst` requests in a row count as one, and more where failures are seen to come in
    longer bursts; the reason says so. What has not happened cannot be seen: a load without a
    failure is guarded against bursts by `burst` alone.

    Raises:
        ValueError: `burst` below 1, or what `rate_verdict` raises.
    """
    bad = np.asarray(failed, dtype=np.bool_)
    failures = int(np.count_nonzero(bad))
    plain = rate_verdict(
        failures, len(bad), limit=limit, confidence=confidence, rate_per_second=rate_per_second
    )
    block = _block(burst, bad)
    if block == 1 or plain.measured is None:
        return plain
    lower, upper, p_value = _share_of_runs(failures, len(bad), limit, block, confidence)
    needed = requests_to_decide(plain.measured, limit, confidence)
    plain = replace(plain, p_value=p_value)
    return _weakened(plain, lower, upper, burst, block, needed, rate_per_second)


def percentile_verdict_in_order(
    latencies_seconds: Sequence[float] | NDArray[np.float64],
    *,
    percentile: float,
    limit_seconds: float,
    confidence: float,
    burst: int = 1,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge latencies in the order of sending, as `percentile_verdict` judges them in any order.

    A request without an answer is infinite here, at its place. `burst` is as in
    `rate_verdict_in_order`; what comes in bursts are latencies at the limit or above, and those
    above their own percentile once any came near the limit.

    Raises:
        ValueError: `burst` below 1, or what `percentile_verdict` raises.
    """
    values = np.asarray(latencies_seconds, dtype=np.float64)
    lost = values == math.inf
    plain = percentile_verdict(
        values[~lost] if values.ndim == 1 else values,
        percentile=percentile,
        limit_seconds=limit_seconds,
        confidence=confidence,
        censored=int(np.count_nonzero(lost)),
        rate_per_second=rate_per_second,
    )
    if plain.measured is None:
        return plain
    block = max(check_burst(burst), burst_length(values, percentile, limit_seconds=limit_seconds))
    if block == 1:
        return plain
    low, high = percentile_ranks(len(values) // block, percentile / 100, confidence)
    # A run of sorted latencies counts as one, by its slowest above and by its fastest below.
    first, last = (None if low is None else (low - 1) * block), (high or 0) * block - 1
    ordered = np.partition(values, sorted({rank for rank in (first, last) if rank is not None}))
    lower = None if first is None else float(ordered[first])
    upper = None if high is None else float(ordered[last])
    allowed, slow = (
        1 - percentile / 100,
        int(np.count_nonzero(values >= limit_seconds)) / len(values),
    )
    needed = requests_to_decide(slow, allowed, confidence)
    slower = int(np.count_nonzero(values > limit_seconds)) // block
    plain = replace(plain, p_value=fail_p_value(slower, len(values) // block, allowed))
    return _weakened(plain, lower, upper, burst, block, needed, rate_per_second)


def goodput_verdict_in_order(
    limits: GoodputLimits,
    *,
    target: float,
    confidence: float,
    ttft_seconds: ArrayLike | None = None,
    inter_token_seconds: ArrayLike | None = None,
    latency_seconds: ArrayLike | None = None,
    burst: int = 1,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge times in the order of sending, as `goodput_verdict` judges them in any order.

    A request without an answer is NaN or infinite here, at its place. `burst` is as in
    `rate_verdict_in_order`; misses are what comes in bursts.

    Raises:
        ValueError: `burst` below 1, or what `goodput_verdict` raises.
    """
    plain = goodput_verdict(
        limits,
        target=target,
        confidence=confidence,
        ttft_seconds=ttft_seconds,
        inter_token_seconds=inter_token_seconds,
        latency_seconds=latency_seconds,
        rate_per_second=rate_per_second,
    )
    missed = ~meets_limits(
        limits,
        ttft_seconds=ttft_seconds,
        inter_token_seconds=inter_token_seconds,
        latency_seconds=latency_seconds,
    )
    block = _block(burst, missed)
    if block == 1 or plain.measured is None:
        return plain
    misses, allowed = int(np.count_nonzero(missed)), 1 - target
    lowest, highest, p_value = _share_of_runs(misses, len(missed), allowed, block, confidence)
    needed = requests_to_decide(1 - plain.measured, allowed, confidence)
    plain = replace(plain, p_value=p_value)
    return _weakened(plain, 1 - highest, 1 - lowest, burst, block, needed, rate_per_second)


def _share_of_runs(
    bad: int, n: int, allowed: float, block: int, confidence: float
) -> tuple[float, float, float]:
    """Bounds of a share, and the p-value of a fail, with each `block` requests in a row as one."""
    runs = n // block
    if not runs:
        return 0.0, 1.0, 1.0
    lower = share_bounds(bad // block, runs, confidence)[0]
    upper = share_bounds(min(runs, math.ceil(bad / block)), runs, confidence)[1]
    return lower, upper, fail_p_value(bad // block, runs, allowed)


def _block(burst: int, bad: NDArray[np.bool_]) -> int:
    return max(check_burst(burst), block_length(bad))


def _weakened(
    plain: Verdict,
    lower: float | None,
    upper: float | None,
    burst: int,
    block: int,
    needed: int | None,
    rate_per_second: float | None,
) -> Verdict:
    """The plain verdict with bounds for runs of requests: never decided where it was not.

    `needed` is how many independent requests would decide, None if none would.
    """
    limit = plain.limit or 0.0
    seen = replace(plain, lower=lower, upper=upper, block=block)
    why = "they came in bursts" if block > burst else "they may share one cause"
    span = f"{format_value(lower or 0.0, plain.unit)} to {_up_to(upper, plain.unit)}"
    reason = (
        f"{span}, as {block:,} requests in a row count as one ({why}); "
        f"each for itself, {plain.reason}"
    )
    # The bounds are wider than the plain ones: a limit outside is on the side where it was.
    outside = (upper is not None and upper < limit) or (lower is not None and lower > limit)
    if plain.outcome is not Outcome.INCONCLUSIVE and outside:
        return replace(seen, reason=reason)
    if needed is None:
        return seen.inconclusive_because(
            reason, plain.remedy or "Find out what the bursts come from."
        )
    needed = max(needed * block, plain.n + 1)
    return seen.inconclusive_because(
        reason,
        f"About {needed:,} requests would decide, or fewer without the bursts; you sent "
        f"{plain.n:,}: {more_load(needed, rate_per_second)}.",
    )


def _up_to(upper: float | None, unit: str) -> str:
    return "any" if upper is None else format_value(upper, unit)
