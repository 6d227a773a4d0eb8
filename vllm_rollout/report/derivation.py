"""Derivation of a verdict: its formula with the numbers put in, to check with a calculator.

It uses the fields of a verdict. Of a share, the bounds are computed again and compared; of a
percentile, whose latencies are not in evidence, the ranks that the bounds have are.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_rollout.judge.binomial import chance_above, chance_at_most, percentile_ranks, share_bounds
from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below
from vllm_rollout.model.percentiles import nearest_rank
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod
from vllm_rollout.report.formatting import NONE

_BY_RANK = (VerdictMethod.ORDER_STATISTICS, VerdictMethod.BUCKETS)
# A share that evidence of schema 1 has no method of is computed again all the same, and compared.
_SHARES = (VerdictMethod.CLOPPER_PEARSON, None)
_SAME = 1e-9
_SAME_BOUND = 1e-6
_LARGEST_LOGARITHM = 700.0


def working(verdict: Verdict) -> tuple[str, ...]:
    """One line for each step from the figures to the outcome; never empty."""
    if verdict.measured is None and verdict.lower is None and verdict.upper is None:
        return ("There is no figure to compute with: the reason says all there is.",)
    if verdict.confidence is None:
        measured, limit = exact(verdict.measured, verdict.unit), exact(verdict.limit, verdict.unit)
        return (f"Measured {measured}, limit {limit}: compared as they are, at no confidence.",)
    return (*_bounds(verdict, verdict.confidence), _beside_the_limit(verdict))


def exact(value: float | None, unit: str) -> str:
    """A figure to six digits, as one needs it to compute; a dash for none."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞"
    return {"s": f"{value:.6g} s", "ratio": _percent(value), "1/s": f"{value:.6g}/s"}.get(
        unit, f"{value:.6g}"
    )


def _bounds(verdict: Verdict, confidence: float) -> Iterator[str]:
    """Yield how the bounds come from the figures, by the kind of verdict."""
    block, method = verdict.block or 1, verdict.method
    if method is VerdictMethod.ANYTIME_VALID:
        yield from _sequence(verdict, block, confidence)
    elif method in _BY_RANK and verdict.percentile is not None and verdict.n >= block:
        yield from _ranks(verdict, verdict.percentile, block, confidence)
    elif method in _SHARES and (share := _Share.of(verdict, block)) is not None:
        yield from _share(verdict, share, confidence)
    elif method is None:
        yield (
            "How the bounds were computed is not in this verdict: evidence names the method "
            "since schema 2."
        )
    else:
        yield (
            f"The bounds do not follow from the measured value and n = {verdict.n:,} alone "
            "(several samples): the reason says what they rest on."
        )


def _in_blocks(n: int, block: int) -> Iterator[str]:
    if block > 1:
        yield (
            f"Bursts: {block:,} requests in a row count as one, so {n:,} requests as "
            f"{n // block:,} independent ones."
        )


def _sequence(verdict: Verdict, block: int, confidence: float) -> Iterator[str]:
    yield f"Measured: {_percent(verdict.measured or 0.0)} of {verdict.n:,}."
    yield from _in_blocks(verdict.n, block)
    yield (
        "Bounds: a confidence sequence, which leaves out each share p against which the e-value "
        f"has reached 1 / {_percent(1 - confidence)} = {1 / (1 - confidence):.6g}. After x bad of "
        "n, the e-value at odds ratio r is r^x / (1 + (r - 1) p)^n; the odds ratios and their "
        "weights are in vllm_rollout/judge/mixture_sprt.py."
    )
    yield from _e_value(verdict, block, confidence)


def _e_value(verdict: Verdict, block: int, confidence: float) -> Iterator[str]:
    """Yield the e-value that decided, if it can be computed again from the figures."""
    measured, limit = verdict.measured, verdict.limit
    failed = verdict.outcome is Outcome.FAIL
    if measured is None or limit is None or verdict.outcome is Outcome.INCONCLUSIVE:
        return
    lower, upper = verdict.lower, verdict.upper
    if lower is not None and upper is not None and failed is (upper <= limit):
        # A share that has to be above its limit, as goodput: the e-process was on the rest.
        measured, limit, lower, upper = 1 - measured, 1 - limit, 1 - upper, 1 - lower
    bound = lower if failed else upper
    bad = round(measured * verdict.n)
    runs = -(-verdict.n // block) if failed else verdict.n // block
    process = e_process_above(limit) if failed else e_process_below(limit)
    again = process.bound(bad / block, runs, -math.log1p(-confidence))
    if bound is None or not math.isclose(again, bound, rel_tol=_SAME_BOUND, abs_tol=_SAME):
        return
    side = "above" if failed else "below"
    value = math.exp(min(process.log_e_value(bad / block, runs, limit), _LARGEST_LOGARITHM))
    yield (
        f"Decided: with {bad:,} bad of {verdict.n:,}, that is {bad / block:g} of {runs:,} runs, "
        f"the e-value for a share {side} {_percent(limit)} is {value:.6g}, so the bound is "
        f"{_percent(again)}."
    )
    if verdict.p_value is not None:
        yield (
            f"P-value: 1 / {value:.6g} = {1 / value:.4g}, and {verdict.p_value:.4g} over the "
            "part of the risk that was for verdicts before the end."
        )


@dataclass(frozen=True, slots=True)
class _Share:
    """A share of independent requests, and the count that its bounds were computed of."""

    count: int
    n: int
    block: int

    @classmethod
    def of(cls, verdict: Verdict, block: int) -> "_Share | None":
        """The share of `verdict`, if its bounds are those of a single one; else None."""
        measured, lower, upper = verdict.measured, verdict.lower, verdict.upper
        if measured is None or lower is None or upper is None or verdict.confidence is None:
            return None
        if not (0 <= measured <= 1 and verdict.n >= block):
            return None
        share = cls(round(measured * verdict.n), verdict.n, block)
        again = (share.count / verdict.n, *share.bounds(verdict.confidence))
        same = all(
            math.isclose(old, new, rel_tol=_SAME, abs_tol=_SAME)
            for old, new in zip((measured, lower, upper), again, strict=True)
        )
        return share if same else None

    @property
    def runs(self) -> int:
        """Number of independent requests they are worth."""
        return self.n // self.block

    @property
    def fewest(self) -> int:
        """The count that the lower bound is computed of: whole runs only."""
        return self.count // self.block

    @property
    def most(self) -> int:
        """The count that the upper bound is computed of: a run that has begun is whole."""
        return min(self.runs, -(-self.count // self.block))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Lower and upper bound."""
        return (
            share_bounds(self.fewest, self.runs, confidence)[0],
            share_bounds(self.most, self.runs, confidence)[1],
        )


def _share(verdict: Verdict, share: _Share, confidence: float) -> Iterator[str]:
    runs, lower, upper = share.runs, verdict.lower or 0.0, verdict.upper or 0.0
    yield f"Measured: {share.count:,} of {share.n:,} = {_percent(share.count / share.n)}."
    yield from _in_blocks(share.n, share.block)
    yield (
        "Bounds: Clopper–Pearson, computed again here and found the same; "
        f"X is binomial with n = {runs:,} and the share p."
    )
    risk = _percent(1 - confidence)
    if share.most < runs:
        yield (
            f"Upper bound {_percent(upper)}: the p at which P(X <= {share.most:,}) = "
            f"{_percent(chance_at_most(share.most, runs, upper))}, the risk {risk}."
        )
    else:
        yield "Upper bound 100%: all of them were counted."
    if share.fewest:
        yield (
            f"Lower bound {_percent(lower)}: the p at which P(X >= {share.fewest:,}) = "
            f"{_percent(chance_above(share.fewest - 1, runs, lower))}, the risk {risk}."
        )
    else:
        yield "Lower bound 0%: none was counted."
    if verdict.limit is not None and 0 < verdict.limit < 1 and share.block == 1:
        yield _counts_that_decide(runs, verdict.limit, confidence)


def _counts_that_decide(n: int, limit: float, confidence: float) -> str:
    """Return which counts of `n` put both bounds on one side of `limit`."""
    too_many = bisect_left(
        range(n + 1), True, key=lambda count: share_bounds(count, n, confidence)[1] >= limit
    )
    enough = bisect_left(
        range(n + 1), True, key=lambda count: share_bounds(count, n, confidence)[0] > limit
    )
    below = f"at most {too_many - 1:,} of {n:,}" if too_many else f"no count of {n:,}"
    above = f"at least {enough:,}" if enough <= n else f"no count of {n:,}"
    return f"Below {_percent(limit)} with both bounds: {below}; above it with both: {above}."


def _ranks(verdict: Verdict, percentile: float, block: int, confidence: float) -> Iterator[str]:
    requests, share, sure = verdict.n, percentile / 100, _percent(confidence)
    nearest = nearest_rank(requests, percentile)
    n = requests // block
    low, high = percentile_ranks(n, share, confidence)
    edge = " (the edge of its bucket)" if verdict.method is VerdictMethod.BUCKETS else ""
    yield (
        f"Measured: rank {nearest:,} of {requests:,} (P{percentile:g} of {requests:,}, rounded "
        "up), smallest first and those without an answer last: "
        f"{exact(verdict.measured, 's')}{edge}."
    )
    yield from _in_blocks(requests, block)
    yield (
        f"Bounds: order statistics; X, how many of {n:,} are at most the true P{percentile:g}, is "
        f"binomial with p = {_percent(share)}."
    )
    if high is None:
        yield (
            f"Upper bound: none, as even rank {n:,} has only P(X <= {n - 1:,}) = "
            f"{_percent(chance_at_most(n - 1, n, share))}, below {sure}."
        )
    else:
        by_chance = _percent(chance_at_most(high - 1, n, share))
        yield (
            f"Upper bound: rank {high * block:,}{_run(high, n, block)}, "
            f"{exact(verdict.upper, 's')}{edge}: the first with "
            f"P(X <= {high - 1:,}) = {by_chance}, {sure} or more."
        )
    if low is None:
        yield (
            f"Lower bound: none, as even rank 1 has only P(X >= 1) = "
            f"{_percent(chance_above(0, n, share))}, below {sure}."
        )
    else:
        by_chance = _percent(chance_above(low - 1, n, share))
        yield (
            f"Lower bound: rank {(low - 1) * block + 1:,}{_run(low, n, block)}, "
            f"{exact(verdict.lower, 's')}{edge}: the last with "
            f"P(X >= {low:,}) = {by_chance}, {sure} or more."
        )
    if verdict.limit is not None:
        limit = exact(verdict.limit, "s")
        if high is not None:
            slow = requests - high * block
            yield f"The upper bound is below {limit} if at most {slow:,} take that long."
        if low is not None:
            slow = requests - (low - 1) * block
            yield f"The lower bound is above {limit} if at least {slow:,} take longer."


def _run(rank: int, runs: int, block: int) -> str:
    """Return which run of sorted latencies it is whose slowest, or fastest, is the bound."""
    return f" (of run {rank:,} of {runs:,})" if block > 1 else ""


def _beside_the_limit(verdict: Verdict) -> str:
    """Yield where the bounds lie beside the limit, and the outcome."""
    lower, upper, limit = verdict.lower, verdict.upper, verdict.limit
    if limit is None:
        return f"There is no limit to compare with; the outcome is {verdict.outcome}."
    shown = exact(limit, verdict.unit)
    decided = True
    if upper is not None and upper <= limit and (lower is None or lower < limit):
        where = f"The upper bound {exact(upper, verdict.unit)} is not above the limit {shown}"
    elif lower is not None and lower >= limit and (upper is None or upper > limit):
        where = f"The lower bound {exact(lower, verdict.unit)} is not below the limit {shown}"
    else:
        decided = False
        where = f"The limit {shown} lies between the bounds, or a bound is missing"
    if decided and verdict.outcome is Outcome.INCONCLUSIVE:
        return f"{where}, but {verdict.outcome}: something weighs more than the bounds, see above."
    return f"{where}: {verdict.outcome}."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.6g}%"
