"""Verdicts on a finished load in order of time, corrected for bursts.

`rate_verdict` and `percentile_verdict` know no order and take requests to be independent. These
look for bursts first. Where there are any, n requests are worth n / block independent ones
(`judge.effective_sample_size`), and the exact bounds are those of so many: Clopper–Pearson with an
effective sample size (Korn & Graubard 1998, Survey Methodology 24:193) and order statistics at
the ranks it gives (Woodruff 1952, JASA 47:635).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vllm_rollout.judge.binomial import fail_p_value, percentile_ranks, share_bounds
from vllm_rollout.judge.effective_sample_size import block_length, burst_length, check_burst
from vllm_rollout.judge.goodput import GoodputLimits, goodput_verdict, meets_limits
from vllm_rollout.judge.messages import bound_text, may_share_text, worth_text
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
    claim = f"between {bound_text(lower)} and {bound_text(upper)} may fail"
    seen = replace(plain, p_value=p_value, lower=lower, upper=upper)
    bursts = _Bursts("failures", claim, burst, block)
    return _weakened(plain, seen, bursts, needed, rate_per_second)


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
    `rate_verdict_in_order`; what comes in bursts are latencies at the limit or above, and where
    the percentile comes to half the limit, latencies at half of it or above. The bounds take the
    requests to hang together as those do: they are for the limit, and rough far below it.

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
    p_value = fail_p_value(slower, len(values) // block, allowed)
    seen = replace(plain, p_value=p_value, lower=lower, upper=upper)
    bursts = _Bursts("slow requests", _between(f"P{percentile:g}", lower, upper), burst, block)
    return _weakened(plain, seen, bursts, needed, rate_per_second)


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
    lower, upper = 1 - highest, 1 - lowest
    claim = f"between {bound_text(lower)} and {bound_text(upper)} may meet all limits"
    seen = replace(plain, p_value=p_value, lower=lower, upper=upper)
    return _weakened(plain, seen, _Bursts("misses", claim, burst, block), needed, rate_per_second)


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


def _between(name: str, lower: float | None, upper: float | None) -> str:
    """`P95 is between 0.4 s and 2.1 s`; in words where a bound is missing or infinite."""
    if lower == math.inf:
        return f"{name} is beyond any limit"
    if upper is None or upper == math.inf:
        return f"{name} could not be bounded from above"
    return f"{name} is between {format_value(lower or 0.0, 's')} and {format_value(upper, 's')}"


@dataclass(frozen=True, slots=True)
class _Bursts:
    """Bursts of requests of one `kind`: the claim they leave, and how many requests count as one.

    Bursts of `expected` requests are taken to come whether or not any did.
    """

    kind: str
    claim: str
    expected: int
    block: int

    def reason(self, plain: Verdict) -> str:
        """The reason of a verdict on them, beside the `plain` one."""
        seen = self.block > self.expected
        why = f"{self.kind} came in bursts" if seen else may_share_text(self.expected)
        return (
            f"{self.claim}: {why}, so {worth_text(self.block)}, and all {plain.n:,} requests are "
            f"worth {plain.n // self.block:,}; counted one by one, {plain.reason}"
        )


def _weakened(
    plain: Verdict,
    seen: Verdict,
    bursts: _Bursts,
    needed: int | None,
    rate_per_second: float | None,
) -> Verdict:
    """The plain verdict with the bounds that are `seen`: never decided where it was not.

    `needed` is how many independent requests would decide, None if none would.
    """
    limit, lower, upper = plain.limit or 0.0, seen.lower, seen.upper
    seen = replace(seen, block=bursts.block)
    reason = bursts.reason(plain)
    # The bounds are wider than the plain ones: a limit outside is on the side where it was.
    outside = (upper is not None and upper < limit) or (lower is not None and lower > limit)
    if plain.outcome is not Outcome.INCONCLUSIVE and outside:
        return replace(seen, reason=reason)
    if needed is None:
        return seen.inconclusive_because(
            reason, plain.remedy or "Find out what the bursts come from."
        )
    needed = max(needed * bursts.block, plain.n + 1)
    return seen.inconclusive_because(
        reason,
        f"About {needed:,} requests would decide, or fewer without the bursts; you sent "
        f"{plain.n:,}: {more_load(needed, rate_per_second)}.",
    )
