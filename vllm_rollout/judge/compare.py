"""Verdicts on a canary against the baseline beside it, with exact bounds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.messages import bound_text
from vllm_rollout.judge.quantile_ratio import quantile_ratio_bounds, times_needed
from vllm_rollout.judge.sample_size import check_confidence, format_confidence
from vllm_rollout.judge.share_difference import share_difference_bounds, times_to_decide
from vllm_rollout.model.percentiles import check_percentile, nearest_rank
from vllm_rollout.model.units import counted, format_value, of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

_MOST_TIMES = 1000
"""A verdict that takes more times as many requests as were sent is called out of reach."""

_SEND_BOTH = "Check that the load reaches both the baseline and the canary."
_FIX_COUNTER = "Find out why the counter reads no finite number, and measure again."
_FIX_MEASUREMENT = (
    "Fix the clock or the parser that measured them, and measure again; a request without an "
    "answer belongs in the censored ones."
)
_FIX_CANARY = (
    "See what differs between the two builds and what the canary's replicas logged; fix that "
    "before the next attempt."
)
_TOO_NEAR = (
    "The difference is so near the limit that more requests may never decide: make the canary "
    "better, or change in the policy how much worse it may be."
)


def compare_latency(
    baseline_seconds: Sequence[float] | NDArray[np.float64],
    canary_seconds: Sequence[float] | NDArray[np.float64],
    *,
    percentile: float,
    largest_ratio: float,
    confidence: float,
    baseline_censored: int = 0,
    canary_censored: int = 0,
) -> Verdict:
    """Judge by how much `percentile` (95 for P95) of the canary exceeds the baseline's.

    The figure is the ratio canary / baseline, 1 where they are alike; `largest_ratio` is what it
    has to stay below, 1.1 for "less than 10% slower". Passes when the ratio's upper bound is below
    it, fails when the lower bound is above it, and is inconclusive between. Either is wrong with
    a chance of at most 1 - `confidence`, all requests being independent, for any two distributions
    (`quantile_ratio_bounds`, which says why not by ranks and not by bootstrap).

    Censored requests had no answer: they rank above every measured one. `n` counts both sides.

    No request on either side, or a latency that is NaN, infinite or negative, is inconclusive.

    Raises:
        ValueError: a percentile not from 1 to below 100, a ratio that is not above 0 and finite,
            a confidence not between 0.5 and 1, a negative count of censored requests, or
            latencies that are not one row of numbers.
    """
    check_confidence(confidence)
    check_percentile(percentile)
    if not 0 < largest_ratio < math.inf:
        raise ValueError(f"largest_ratio must be above 0 and finite, not {largest_ratio}")
    baseline = _with_censored("baseline", baseline_seconds, baseline_censored)
    canary = _with_censored("canary", canary_seconds, canary_censored)
    unknown = _Unknown(largest_ratio, confidence, baseline.size + canary.size, float(percentile))
    if not (baseline.size and canary.size):
        return unknown.empty(baseline.size, canary.size)
    if not (_all_times(baseline, baseline_censored) and _all_times(canary, canary_censored)):
        reason = "some latencies are not a time (NaN, infinite or negative)"
        return unknown.verdict(reason, _FIX_MEASUREMENT)

    slow, fast = _percentile(canary, percentile), _percentile(baseline, percentile)
    measured = slow / fast if 0 < fast < math.inf else None
    lower, upper = quantile_ratio_bounds(baseline, canary, percentile / 100, confidence)

    def remedy() -> str:
        enough = times_needed(percentile / 100, confidence)
        if min(baseline.size, canary.size) < enough:
            return f"At least {enough:,} requests are needed of each to compare P{percentile:g}."
        if measured is None or math.isinf(measured):
            return f"P{percentile:g} lies among requests without an answer: fix those first."
        return _more_of_both(_times_to_decide(measured, lower, upper, largest_ratio))

    found = (
        f"P{percentile:g} is {format_value(slow, 's')} for the canary "
        f"({counted(canary.size, 'request')}) and {format_value(fast, 's')} for the "
        f"baseline ({baseline.size:,}); canary over baseline"
    )
    return unknown.judged(found, measured, (lower, upper), remedy)


def compare_rate(
    baseline_failures: int,
    baseline_total: int,
    canary_failures: int,
    canary_total: int,
    *,
    largest_difference: float,
    confidence: float,
) -> Verdict:
    """Judge by how much the canary's share of failed requests exceeds the baseline's.

    The figure is the difference canary - baseline, a fraction; `largest_difference` is what it
    has to stay below, 0.005 for "less than half a percent point more". Passes when the
    difference's upper bound is below it, fails when the lower bound is above it, and is
    inconclusive between. Either is wrong with a chance of at most 1 - `confidence`, requests
    being independent (exact and unconditional: Chan & Zhang 1999, see `share_difference_bounds`).

    No request on either side, or a count that is not a finite number, is inconclusive.

    Raises:
        ValueError: more failures than requests, a negative or a fractional count, a difference
            outside 0 to 1 or at 1, a confidence not between 0.5 and 1.
    """
    check_confidence(confidence)
    if not 0 <= largest_difference < 1:
        raise ValueError(f"largest_difference must be from 0 to below 1, not {largest_difference}")
    for failures, total in (
        (baseline_failures, baseline_total),
        (canary_failures, canary_total),
    ):
        if not (math.isfinite(failures) and math.isfinite(total)):
            reason = f"the counts cannot be used: {failures} failures of {total} requests"
            return _Unknown(largest_difference, confidence, 0).verdict(reason, _FIX_COUNTER)
        if not 0 <= failures <= total or failures != int(failures) or total != int(total):
            raise ValueError(f"not a count of failures among requests: {failures} of {total}")
    counts = int(baseline_failures), int(baseline_total), int(canary_failures), int(canary_total)
    unknown = _Unknown(largest_difference, confidence, counts[1] + counts[3])
    if not (counts[1] and counts[3]):
        return unknown.empty(counts[1], counts[3])

    def remedy() -> str:
        times = times_to_decide(*counts, limit=largest_difference, confidence=confidence)
        return _more_of_both(times)

    found = (
        f"{of_total(counts[2], counts[3], 'request')} failed for the canary and "
        f"{counts[0]:,} of {counts[1]:,} for the baseline; canary minus baseline"
    )
    measured = counts[2] / counts[3] - counts[0] / counts[1]
    bounds = share_difference_bounds(*counts, confidence)
    return unknown.judged(found, measured, bounds, remedy)


@dataclass(frozen=True, slots=True)
class _Unknown:
    """Limits of a comparison, and the verdicts that it can end in."""

    limit: float
    confidence: float
    n: int
    percentile: float | None = None

    def verdict(self, reason: str, remedy: str) -> Verdict:
        """Inconclusive, with no figure."""
        return self._with(Outcome.INCONCLUSIVE, reason, remedy)

    def empty(self, baseline: int, canary: int) -> Verdict:
        """Inconclusive, as one side or both had no request."""
        sides = [side for side, n in (("baseline", baseline), ("canary", canary)) if not n]
        return self.verdict(
            f"no request of the {' nor of the '.join(sides)} was judged", _SEND_BOTH
        )

    def judged(
        self,
        found: str,
        measured: float | None,
        bounds: tuple[float, float],
        remedy: Callable[[], str],
    ) -> Verdict:
        """The outcome that `bounds` have beside the limit; `remedy` is for one that is open."""
        lower, upper = bounds
        against = (
            f"at {format_confidence(self.confidence)} confidence "
            f"(limit: below {_figure(self.limit)})"
        )
        if upper < self.limit:
            outcome, remedy_text = Outcome.PASS, ""
            reason = f"{found} is at most {_figure(upper)}, {against}"
        elif lower > self.limit:
            outcome, remedy_text = Outcome.FAIL, _FIX_CANARY
            reason = f"{found} is at least {_figure(lower)}, {against}"
        else:
            outcome, remedy_text = Outcome.INCONCLUSIVE, remedy()
            reason = f"{found} is between {_figure(lower)} and {_figure(upper)}, {against}"
        return self._with(outcome, reason, remedy_text, measured, lower, upper)

    def _with(
        self,
        outcome: Outcome,
        reason: str,
        remedy: str,
        measured: float | None = None,
        lower: float | None = None,
        upper: float | None = None,
    ) -> Verdict:
        return Verdict(
            outcome=outcome,
            reason=reason,
            measured=measured,
            lower=lower,
            upper=upper,
            limit=self.limit,
            confidence=self.confidence,
            n=self.n,
            remedy=remedy,
            unit="ratio",
            method=VerdictMethod.TWO_SAMPLES,
            percentile=self.percentile,
        )


def _with_censored(
    side: str, seconds: Sequence[float] | NDArray[np.float64], censored: int
) -> NDArray[np.float64]:
    """All times of one side, infinity for each request without an answer."""
    if censored < 0:
        raise ValueError(f"{side}_censored cannot be negative: {censored}")
    times = np.asarray(seconds, dtype=np.float64)
    if times.ndim != 1:
        raise ValueError(f"{side}_seconds must be one row of numbers, not {times.ndim} dimensions")
    return np.append(times, np.full(censored, math.inf))


def _all_times(times: NDArray[np.float64], censored: int) -> bool:
    """Return True if none is NaN or negative, and only censored ones are infinite."""
    return bool(np.all(times >= 0)) and int(np.isinf(times).sum()) == censored


def _percentile(times: NDArray[np.float64], percentile: float) -> float:
    rank = nearest_rank(times.size, percentile)
    return float(np.partition(times, rank - 1)[rank - 1])


def _times_to_decide(measured: float, lower: float, upper: float, limit: float) -> int | None:
    """About how many times the requests it takes, the ratio staying; None when out of reach.

    On a logarithmic scale the bounds draw nearer as the root of the requests grows.
    """
    bound = upper if measured < limit else lower
    if measured == limit or not 0 < measured * bound < math.inf:
        return None
    times = (math.log(bound / measured) / math.log(limit / measured)) ** 2
    return math.ceil(times) if times <= _MOST_TIMES else None


def _more_of_both(times: int | None) -> str:
    if times is None:
        return _TOO_NEAR
    return (
        f"About {max(times, 2):,} times as many requests to both would decide, if they go on as "
        "they did: raise `load.duration`."
    )


def _figure(value: float) -> str:
    """Four digits, so that a bound just inside the limit does not read like the limit."""
    return bound_text(value) if math.isfinite(value) else "∞"
