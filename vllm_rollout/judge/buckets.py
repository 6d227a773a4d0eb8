"""Verdict on a percentile of latency, from the buckets of a Prometheus histogram.

A histogram tells how many requests took at most each of a few bounds and nothing in between. The
order statistics that bound the percentile (see `percentile_verdict`) are known to lie in a bucket,
and the percentile is bounded by that bucket's far edge. Nothing is interpolated.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_rollout.judge.binomial import fail_p_value, percentile_ranks
from vllm_rollout.judge.messages import FIX_SLOWNESS
from vllm_rollout.judge.sample_size import (
    check_confidence,
    check_limit_seconds,
    format_confidence,
    requests_needed_for_percentile,
    requests_to_decide,
)
from vllm_rollout.model.percentiles import check_percentile, nearest_rank
from vllm_rollout.model.units import counted, format_value
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

_OBSERVE_LONGER = "observe for longer, or under more load"
_FIX_SCRAPE = "Read the counters again, and take plain differences of them: no rate, no increase."


def bucket_verdict(
    cumulative: Mapping[float, float] | Sequence[tuple[float, float]],
    *,
    percentile: float,
    limit_seconds: float,
    confidence: float,
    resets: int = 0,
    missing_scrapes: int = 0,
) -> Verdict:
    """Judge `percentile` (95 for P95) of the requests in a histogram against `limit_seconds`.

    `cumulative` has, for each bound in seconds and for infinity, how many requests took at most
    that long (`le`), as the difference of two scrapes. `resets` of the counters and
    `missing_scrapes` in between are named in the reason: requests may be missing for them.
    Requests that failed are in no bucket of vLLM's; `rate_verdict` is about those.

    Passes when the percentile is shown to lie at or below a bound at or below the limit, fails
    when it is shown to lie above a bound at or above the limit; either is wrong with a chance of
    at most 1 - `confidence`, requests being independent. (A request of exactly the limit is within
    it here: a bucket tells it from no faster one.) Everything else is inconclusive, above all a
    percentile in the bucket that the limit lies inside, however many the requests.

    `lower`, `measured` and `upper` are bounds of buckets: the last that is certainly below the
    percentile, the first that is not below the nearest-rank percentile, the first that is certainly
    not below the percentile.

    No request, or counts that are no histogram (NaN, negative or fractional, falling from bound to
    bound, no bucket up to infinity), is inconclusive.

    Raises:
        ValueError: a percentile not from 1 to below 100, a limit that is not a positive time, a
            confidence not between 0.5 and 1, negative `resets` or `missing_scrapes`.
    """
    check_confidence(confidence)
    check_percentile(percentile)
    check_limit_seconds(limit_seconds)
    if resets < 0 or missing_scrapes < 0:
        raise ValueError(f"not counts: {resets} resets, {missing_scrapes} missing scrapes")
    pairs = sorted(cumulative.items() if isinstance(cumulative, Mapping) else cumulative)
    bounds = [float(bound) for bound, _ in pairs]
    counts = [float(count) for _, count in pairs]
    histogram = _Histogram(bounds, counts, percentile, limit_seconds, confidence)
    gaps = _gaps(resets, missing_scrapes)
    if problem := _unusable(bounds, counts):
        return histogram.inconclusive(f"{problem}{gaps}", _FIX_SCRAPE)
    if counts[-1] == 0:
        enough = requests_needed_for_percentile(percentile, confidence)
        return histogram.inconclusive(
            f"the histogram has no request{gaps}",
            f"Check that requests reach the server; at least {enough:,} are needed.",
        )
    return histogram.judge(gaps)


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Input of the verdict: counts of requests at or below bounds, in ascending order."""

    bounds: Sequence[float]
    counts: Sequence[float]
    percentile: float
    limit: float
    confidence: float

    @property
    def name(self) -> str:
        return f"P{self.percentile:g}"

    def inconclusive(self, reason: str, remedy: str) -> Verdict:
        """The verdict on what is no histogram of any request."""
        return self._verdict(Outcome.INCONCLUSIVE, reason, remedy)

    def judge(self, gaps: str) -> Verdict:
        """The verdict on a sound histogram; `gaps` are the words for what it may have missed."""
        n = int(self.counts[-1])
        nearest = nearest_rank(n, self.percentile)
        low, high = percentile_ranks(n, self.percentile / 100, self.confidence)
        lower = None if low is None else self._bucket(low)[0]
        upper = None if high is None else self._bucket(high)[1]
        figures = (self._bucket(nearest)[1], lower, upper)
        against = (
            f"at {format_confidence(self.confidence)} confidence (limit: {_seconds(self.limit)}), "
            f"by the buckets of {counted(n, 'request')}"
        )
        if upper is not None and upper <= self.limit:
            reason = f"{self.name} is at most {_seconds(upper)}, {against}{gaps}"
            return self._verdict(Outcome.PASS, reason, "", n, figures)
        if lower is not None and lower >= self.limit:
            reason = f"{self.name} is above {_seconds(lower)}, {against}{gaps}"
            return self._verdict(Outcome.FAIL, reason, FIX_SLOWNESS, n, figures)
        span = f"{self.name} is above {_seconds(lower or 0.0)}"
        if upper is not None and upper < math.inf:
            span += f" and at most {_seconds(upper)}"
        why, remedy = self._undecided(n)
        return self._verdict(
            Outcome.INCONCLUSIVE, f"{span}, {against}{why}{gaps}", remedy, n, figures
        )

    def _bucket(self, rank: int) -> tuple[float, float]:
        """The edges between which the `rank`-th smallest latency lies, the upper one included."""
        at = bisect_left(self.counts, rank)
        return (self.bounds[at - 1] if at else 0.0), self.bounds[at]

    def _undecided(self, n: int) -> tuple[str, str]:
        """Return why neither bound decides, and what would."""
        allowed = 1 - self.percentile / 100
        below, above = bounds_around(self.bounds, self.limit)
        slow = 1 - (0 if below is None else self.counts[self.bounds.index(below)]) / n
        if slow >= allowed:
            slow = 1 - self.counts[self.bounds.index(above)] / n
            if slow <= allowed and below != above:
                return f"; {_decidable(below, above, self.limit)}", _other_means(self.limit)
        needed = requests_to_decide(slow, allowed, self.confidence)
        if needed is None:
            return "", (
                f"{self.name} is so near the limit that more requests may never decide: make the "
                "service faster, or change the limit in the policy."
            )
        return "", (
            f"About {max(needed, n + 1):,} requests would decide, if latencies stay as they are; "
            f"these were {n:,}: {_OBSERVE_LONGER}."
        )

    def _verdict(
        self,
        outcome: Outcome,
        reason: str,
        remedy: str,
        n: int = 0,
        figures: tuple[float | None, float | None, float | None] = (None, None, None),
    ) -> Verdict:
        measured, lower, upper = figures
        return Verdict(
            outcome=outcome,
            reason=reason,
            measured=measured,
            lower=lower,
            upper=upper,
            limit=self.limit,
            confidence=self.confidence,
            n=n,
            remedy=remedy,
            unit="s",
            p_value=self._p_value(n) if n else None,
            method=VerdictMethod.BUCKETS,
            percentile=float(self.percentile),
            block=1,
        )

    def _p_value(self, n: int) -> float:
        slower = n - self.counts[bisect_left(self.bounds, self.limit)]
        return fail_p_value(int(slower), n, 1 - self.percentile / 100)


def _unusable(bounds: Sequence[float], counts: Sequence[float]) -> str:
    """Return why these are no histogram, or nothing."""
    if not bounds or bounds[-1] != math.inf:
        return "the histogram has no bucket up to infinity, so its total is unknown"
    if any(not lower < upper for lower, upper in pairwise((-math.inf, *bounds))):
        return "the bounds of the buckets are not numbers in order, each of them once"
    if not all(0 <= count < math.inf and count == int(count) for count in counts):
        return "the counts of the buckets are not whole numbers from 0 up"
    if any(lower > upper for lower, upper in pairwise(counts)):
        return "a bucket holds fewer requests than a narrower one"
    return ""


def _gaps(resets: int, missing_scrapes: int) -> str:
    """Name what may have kept requests from being counted."""
    named = [
        f"{count:,} {one if count == 1 else many}"
        for count, one, many in (
            (resets, "counter reset", "counter resets"),
            (missing_scrapes, "scrape missing", "scrapes missing"),
        )
        if count
    ]
    return f"; {' and '.join(named)}: requests may be uncounted" if named else ""


def bounds_around(bounds: Collection[float], limit: float) -> tuple[float | None, float]:
    """Return the edges of the bucket that `limit` lies in, both itself where it is a bound.

    None where no bound is below it, infinity where none is above.
    """
    below = max((bound for bound in bounds if bound <= limit), default=None)
    return below, min((bound for bound in bounds if bound >= limit), default=math.inf)


def limit_inside_a_bucket(bounds: Collection[float], limit_seconds: float) -> str:
    """Return which limits these bounds can decide around one that they cannot; "" if they can.

    A percentile in the bucket that the limit lies inside is not decided, however many the requests.
    """
    below, above = bounds_around(bounds, limit_seconds)
    return "" if below == limit_seconds else _decidable(below, above, limit_seconds)


def _decidable(below: float | None, above: float, limit: float) -> str:
    """Return which limits the bounds around `limit` can decide."""
    if below is None:
        can = f"the lowest limit they can decide is {_seconds(above)}"
    elif math.isinf(above):
        can = f"the highest limit they can decide is {_seconds(below)}"
    else:
        can = f"they can decide {_seconds(below)} and {_seconds(above)}, and no limit between"
    return f"{_seconds(limit)} lies inside a bucket: {can}"


def _other_means(limit: float) -> str:
    return (
        "Judge the latencies that the load itself measured, set the limit to a bound of the "
        f"buckets, or give the histogram a bound at {_seconds(limit)}."
    )


def _seconds(value: float) -> str:
    return format_value(value, "s")
