"""Goodput verdict: enough requests meet every latency limit at once, by exact bounds."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vllm_rollout.judge.binomial import fail_p_value, share_bounds
from vllm_rollout.judge.messages import FIX_MISSES, bound_text
from vllm_rollout.judge.sample_size import (
    check_confidence,
    check_target,
    format_confidence,
    more_load,
    requests_needed,
    requests_to_decide,
)
from vllm_rollout.model.units import format_share, format_value, of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

_WORDS = {
    "ttft_seconds": "first token",
    "inter_token_seconds": "inter-token",
    "latency_seconds": "end to end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputLimits:
    """Limits that a good request stays below, in seconds; None is not asked.

    Time to first token, time between tokens (the mean of a request), and end to end.

    Raises:
        ValueError: nothing is asked, or a limit is not a positive time.
    """

    ttft_seconds: float | None = None
    inter_token_seconds: float | None = None
    latency_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError("give at least one limit that a good request stays below")
        for name, limit in self.asked.items():
            if not 0 < limit < math.inf:
                raise ValueError(f"{name} must be a positive time, not {limit}")

    def __str__(self) -> str:
        """`first token below 0.5 s, end to end below 3 s`."""
        return ", ".join(
            f"{_WORDS[name]} below {format_value(limit, 's')}" for name, limit in self.asked.items()
        )

    @property
    def asked(self) -> dict[str, float]:
        """The limits that are not None, by name."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}


def meets_limits(
    limits: GoodputLimits,
    *,
    ttft_seconds: ArrayLike | None = None,
    inter_token_seconds: ArrayLike | None = None,
    latency_seconds: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Return which requests meet every limit asked; one value for each request.

    Each row holds seconds, one for each request in the same order. A time that is missing (NaN),
    infinite, negative or equal to the limit does not meet it.

    Raises:
        ValueError: a limit is asked of times that are not given, or rows that are not one number
            for each request.
    """
    return _meets(limits, _times(limits, (ttft_seconds, inter_token_seconds, latency_seconds)))


def goodput_verdict(
    limits: GoodputLimits,
    *,
    target: float,
    confidence: float,
    ttft_seconds: ArrayLike | None = None,
    inter_token_seconds: ArrayLike | None = None,
    latency_seconds: ArrayLike | None = None,
    censored: int = 0,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge the share of requests that meet every limit (`meets_limits`), to be above `target`.

    Passes when the lower Clopper–Pearson bound is above `target`, a fraction, fails when the
    upper bound is below it, and is inconclusive between. Either is wrong with a chance of at most
    1 - `confidence`, requests being independent. `censored` requests had no answer and are in no
    row; they count as misses, and so does a time that is missing. `rate_per_second` is the
    load's, to name the duration a verdict would take.

    No request, or a time that is negative (a broken clock), is inconclusive.

    Raises:
        ValueError: as `meets_limits`; a target not between 0 and 1, a confidence not between 0.5
            and 1, a negative `censored`.
    """
    check_confidence(confidence)
    check_target(target)
    if censored < 0:
        raise ValueError(f"censored cannot be negative: {censored}")
    times = _times(limits, (ttft_seconds, inter_token_seconds, latency_seconds))
    met = _meets(limits, times)
    good, n = int(np.count_nonzero(met)), met.size + censored
    unknown = Verdict(
        outcome=Outcome.INCONCLUSIVE,
        reason="",
        limit=target,
        confidence=confidence,
        n=n,
        unit="ratio",
        method=VerdictMethod.CLOPPER_PEARSON,
        block=1,
    )
    if n == 0:
        enough = requests_needed(1 - target, confidence)
        return unknown.inconclusive_because(
            "no request was judged",
            f"Check that the load reaches the server; at least {enough:,} requests are needed.",
        )
    if any(np.any(row < 0) for row in times.values()):
        return unknown.inconclusive_because(
            "some times are negative", "Fix the clock that measured them, and measure again."
        )

    lower, upper = share_bounds(good, n, confidence)
    p_value = fail_p_value(n - good, n, 1 - target)
    seen = replace(unknown, measured=good / n, lower=lower, upper=upper, p_value=p_value)
    counted = f"{of_total(good, n, 'request')} met every limit ({limits})"
    against = (
        f"at {format_confidence(confidence)} confidence "
        f"(limit: above {format_share(float(target))}){_misses(limits, times, censored)}"
    )
    if lower > target:
        reason = f"{counted}: at least {bound_text(lower)} do, {against}"
        return replace(seen, outcome=Outcome.PASS, reason=reason)
    if upper < target:
        reason = f"{counted}: at most {bound_text(upper)} do, {against}"
        return replace(
            seen,
            outcome=Outcome.FAIL,
            reason=reason,
            remedy=FIX_MISSES,
        )
    return seen.inconclusive_because(
        f"{counted}: between {bound_text(lower)} and {bound_text(upper)} do, {against}",
        _what_would_decide(n - good, n, target, confidence, rate_per_second),
    )


def _times(
    limits: GoodputLimits, rows: tuple[ArrayLike | None, ...]
) -> dict[str, NDArray[np.float64]]:
    """The times that limits are asked of, by the limit's name; checked to belong together."""
    given = dict(zip(_WORDS, rows, strict=True))
    times = {name: np.asarray(given[name], dtype=np.float64) for name in limits.asked}
    for name, row in times.items():
        if given[name] is None:
            raise ValueError(f"{name} has a limit, but no times are given")
        if row.ndim != 1:
            raise ValueError(f"{name} must be one row of numbers, not {row.ndim} dimensions")
    if len({row.size for row in times.values()}) > 1:
        sizes = ", ".join(f"{name} {row.size:,}" for name, row in times.items())
        raise ValueError(f"every request needs a time in each row, not {sizes}")
    return times


def _meets(limits: GoodputLimits, times: dict[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    rows = [(row >= 0) & (row < limits.asked[name]) for name, row in times.items()]
    met: NDArray[np.bool_] = np.all(rows, axis=0)
    return met


def _misses(limits: GoodputLimits, times: dict[str, NDArray[np.float64]], censored: int) -> str:
    """Return how many requests missed which limit; one request may have missed several."""
    counts = {
        _WORDS[name]: int(np.count_nonzero(~(row < limits.asked[name])))
        for name, row in times.items()
    }
    counts["no answer"] = censored
    named = [f"{word} {count:,}" for word, count in counts.items() if count]
    return f"; missed: {', '.join(named)}" if named else ""


def _what_would_decide(
    misses: int, n: int, target: float, confidence: float, rate_per_second: float | None
) -> str:
    """The remedy of a share whose bounds have the target between them."""
    needed = requests_to_decide(misses / n, 1 - target, confidence)
    if needed is None:
        return (
            "The share is so near the target that more requests may never decide: make the service "
            "faster, or change the target in the policy."
        )
    needed = max(needed, n + 1)
    return (
        f"About {needed:,} requests would decide, if the share stays as it is; you sent {n:,}: "
        f"{more_load(needed, rate_per_second)}."
    )
