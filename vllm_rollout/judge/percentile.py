"""Verdict on a percentile of latency, by order statistics; no distribution is assumed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.binomial import fail_p_value, percentile_ranks
from vllm_rollout.judge.messages import FIX_FAILURES, FIX_SLOWNESS
from vllm_rollout.judge.sample_size import (
    check_confidence,
    check_limit_seconds,
    format_confidence,
    more_load,
    requests_needed_for_percentile,
    requests_to_decide,
)
from vllm_rollout.model.percentiles import check_percentile, nearest_rank
from vllm_rollout.model.units import counted, format_share, format_value, of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

_FIX_MEASUREMENT = (
    "Fix the clock or the parser that measured them, and measure again; a request without an "
    "answer belongs in `censored`."
)


def percentile_verdict(
    latencies_seconds: Sequence[float] | NDArray[np.float64],
    *,
    percentile: float,
    limit_seconds: float,
    confidence: float,
    censored: int = 0,
    resolution: float = 0.0,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge `percentile` (95 for P95) of all requests against `limit_seconds`, to stay below.

    Passes when the upper confidence bound is below the limit, fails when the lower bound is above
    it, and is inconclusive between; a bound equal to the limit decides nothing. Either is wrong
    with a chance of at most 1 - `confidence`, requests being independent.

    `censored` requests had no answer: they rank above every measured one, so a percentile or a
    bound among them is infinite. `resolution` is the width of the buckets that the latencies were
    rounded to, as a fraction of their value; it is added to both bounds, outward.
    `measured` is the nearest-rank percentile. `rate_per_second` is the load's, to name the
    duration a verdict would take.

    No request, or a latency that is NaN, infinite or negative, is inconclusive.

    Raises:
        ValueError: a percentile not from 1 to below 100, a limit that is not a positive time, a
            confidence not between 0.5 and 1, a negative `censored`, a resolution outside 0 to 1
            or at 1, or latencies that are not one row of numbers.
    """
    check_confidence(confidence)
    check_percentile(percentile)
    check_limit_seconds(limit_seconds)
    if censored < 0:
        raise ValueError(f"censored cannot be negative: {censored}")
    if not 0 <= resolution < 1:
        raise ValueError(f"resolution must be a fraction from 0 to below 1, not {resolution}")
    values = np.asarray(latencies_seconds, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"latencies must be one row of numbers, not {values.ndim} dimensions")
    sample = _Sample(values, censored, percentile, limit_seconds, confidence, resolution)
    return sample.judge(rate_per_second)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Input of the verdict, as `percentile_verdict` checked it."""

    values: NDArray[np.float64]
    censored: int
    percentile: float
    limit: float
    confidence: float
    resolution: float

    @property
    def n(self) -> int:
        return self.values.size + self.censored

    @property
    def name(self) -> str:
        return f"P{self.percentile:g}"

    @property
    def sure(self) -> str:
        return f"at {format_confidence(self.confidence)} confidence"

    def judge(self, rate_per_second: float | None) -> Verdict:
        blank = Verdict(
            outcome=Outcome.INCONCLUSIVE,
            reason="",
            limit=self.limit,
            confidence=self.confidence,
            n=self.n,
            unit="s",
            method=VerdictMethod.ORDER_STATISTICS,
            percentile=float(self.percentile),
            block=1,
        )
        if problem := self._unusable():
            return blank.inconclusive_because(*problem)
        measured, lower, upper = self._figures()
        seen = replace(blank, measured=measured, lower=lower, upper=upper, p_value=self._p_value())
        against = f"{self.sure} (limit: below {_seconds(self.limit)})"
        if self.censored:
            against += f"; {of_total(self.censored, self.n, 'request')} failed"

        if upper is not None and upper < self.limit:
            reason = f"{self.name} is at most {_seconds(upper)}, {against}"
            return replace(seen, outcome=Outcome.PASS, reason=reason)
        if lower is not None and lower > self.limit:
            reason = f"{self.name} is {_at_least(lower)}, {against}"
            remedy = FIX_FAILURES if math.isinf(lower) else FIX_SLOWNESS
            return replace(seen, outcome=Outcome.FAIL, reason=reason, remedy=remedy)
        if upper is None:
            minimum = requests_needed_for_percentile(self.percentile, self.confidence)
            return seen.inconclusive_because(
                f"{counted(self.n, 'request')} {'is' if self.n == 1 else 'are'} too few to bound "
                f"{self.name} from above, {against}",
                f"At least {minimum:,} requests are needed; you sent {self.n:,}: "
                f"{more_load(minimum, rate_per_second)}.",
            )
        span = f"between {_seconds(lower or 0.0)} and {_seconds(upper)}"
        return seen.inconclusive_because(
            f"{self.name} is {_at_least(lower or 0.0) if math.isinf(upper) else span}, {against}",
            self._what_would_decide(measured, rate_per_second),
        )

    def _unusable(self) -> tuple[str, str] | None:
        """Return why nothing can be judged, and what to do; None when it can."""
        if self.n == 0:
            minimum = requests_needed_for_percentile(self.percentile, self.confidence)
            reach = "Check that the load reaches the server."
            return (
                "no request was judged",
                f"{reach} {self.name} takes at least {minimum:,} requests {self.sure}.",
            )
        # One NaN makes both extremes NaN, and no comparison with NaN holds.
        if self.values.size and not (self.values.min() >= 0 and self.values.max() < math.inf):
            return "some latencies are not a time (NaN, infinite or negative)", _FIX_MEASUREMENT
        return None

    def _figures(self) -> tuple[float, float | None, float | None]:
        """The percentile by nearest rank, its lower bound and its upper bound."""
        # A fraction of the decimal that was written: 99.9% of 1,000 is rank 999, not 1,000.
        nearest = nearest_rank(self.n, self.percentile)
        low, high = percentile_ranks(self.n, self.percentile / 100, self.confidence)
        answered = self.values.size
        wanted = sorted({r - 1 for r in (nearest, low, high) if r is not None and r <= answered})
        ordered = np.partition(self.values, wanted) if wanted else self.values

        def at(rank: int) -> float:
            return float(ordered[rank - 1]) if rank <= answered else math.inf

        return (
            at(nearest),
            None if low is None else at(low) * (1 - self.resolution),
            None if high is None else at(high) * (1 + self.resolution),
        )

    def _p_value(self) -> float:
        slower = int(np.count_nonzero(self.values * (1 - self.resolution) > self.limit))
        return fail_p_value(slower + self.censored, self.n, 1 - self.percentile / 100)

    def _what_would_decide(self, measured: float, rate_per_second: float | None) -> str:
        """The remedy of a sample that did not: how many requests would, going by this one."""
        # Slow and fast are counted as the bounds would count them, the resolution against us.
        if measured * (1 + self.resolution) < self.limit:
            late = self.values >= self.limit / (1 + self.resolution)
        elif measured * (1 - self.resolution) > self.limit:
            late = self.values > self.limit / (1 - self.resolution)
        else:
            return self._too_near()
        slow = (int(np.count_nonzero(late)) + self.censored) / self.n
        needed = requests_to_decide(slow, 1 - self.percentile / 100, self.confidence)
        if needed is None:
            return self._too_near()
        needed = max(needed, self.n + 1)
        return (
            f"About {needed:,} requests would decide, if {format_share(round(slow, 4))} "
            f"of them go on taking longer than {_seconds(self.limit)}; you sent {self.n:,}: "
            f"{more_load(needed, rate_per_second)}."
        )

    def _too_near(self) -> str:
        return (
            f"{self.name} is so near the limit that more requests may never decide: make the "
            "service faster, or change the limit in the policy."
        )


def _at_least(bound_seconds: float) -> str:
    """`4.1 s or longer`; an infinite bound has no such number."""
    return (
        "beyond any limit" if math.isinf(bound_seconds) else f"{_seconds(bound_seconds)} or longer"
    )


def _seconds(value: float) -> str:
    return format_value(value, "s")
