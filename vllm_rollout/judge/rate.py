"""Verdict on the share of failed requests, by exact confidence bounds."""

import math
from dataclasses import replace

from vllm_rollout.judge.binomial import fail_p_value, share_bounds
from vllm_rollout.judge.messages import FIX_FAILURES, bound_text
from vllm_rollout.judge.sample_size import (
    check_confidence,
    check_limit,
    format_confidence,
    more_load,
    requests_needed,
)
from vllm_rollout.model.units import format_share, of_total
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod

__all__ = ["rate_verdict", "rate_verdict_between", "requests_needed"]


def rate_verdict(
    failures: int,
    total: int,
    *,
    limit: float,
    confidence: float,
    rate_per_second: float | None = None,
) -> Verdict:
    """Judge `failures` of `total` requests against `limit`, a fraction to stay below.

    Passes when the upper Clopper–Pearson bound is below the limit, fails when the lower bound is
    above it, and is inconclusive between; a bound equal to the limit decides nothing. Either is
    wrong with a chance of at most 1 - `confidence`, requests being independent.
    `rate_per_second` is the load's, to name the duration a pass would take.

    No request, or a count that is not a finite number (a broken counter reads NaN), is
    inconclusive.

    Raises:
        ValueError: more failures than requests, a negative or a fractional count, a limit outside
            0 to 1 or at 0, a confidence not between 0.5 and 1.
    """
    check_confidence(confidence)
    check_limit(limit)
    unknown = Verdict(
        outcome=Outcome.INCONCLUSIVE,
        reason="",
        limit=limit,
        confidence=confidence,
        unit="ratio",
        method=VerdictMethod.CLOPPER_PEARSON,
        block=1,
    )
    if not (math.isfinite(failures) and math.isfinite(total)):
        return unknown.inconclusive_because(
            f"the counts cannot be used: {failures} failures of {total} requests",
            "Find out why the counter reads no finite number, and measure again.",
        )
    if not 0 <= failures <= total or failures != int(failures) or total != int(total):
        raise ValueError(f"not a count of failures among requests: {failures} of {total}")
    failures, total = int(failures), int(total)
    if total == 0:
        return unknown.inconclusive_because(
            "no request was judged",
            f"Check that the load reaches the server. {_needs(limit, confidence, 0)}.",
        )

    lower, upper = share_bounds(failures, total, confidence)
    seen = replace(
        unknown,
        n=total,
        measured=failures / total,
        lower=lower,
        upper=upper,
        p_value=fail_p_value(failures, total, limit),
    )
    counted = f"{of_total(failures, total, 'request')} failed"
    against = f"(limit: below {format_share(float(limit))})"
    sure = f"at {format_confidence(confidence)} confidence"
    if upper < limit:
        reason = f"{counted}: at most {bound_text(upper)} fail, {sure} {against}"
        return replace(seen, outcome=Outcome.PASS, reason=reason)
    if lower > limit:
        return replace(
            seen,
            outcome=Outcome.FAIL,
            reason=f"{counted}: at least {bound_text(lower)} fail, {sure} {against}",
            remedy=FIX_FAILURES,
        )
    needed = requests_needed(limit, confidence, failures)
    return seen.inconclusive_because(
        f"{counted}: up to {bound_text(upper)} may fail, {sure} {against}",
        f"{_needs(limit, confidence, failures)}; you sent {total:,}: "
        f"{more_load(needed, rate_per_second)}.",
    )


def rate_verdict_between(
    failures: int, failures_at_most: int, total: int, *, limit: float, confidence: float
) -> Verdict:
    """`rate_verdict` where only bounds of the failures are known.

    It passes on the most that may have failed and fails on the least that did.
    """
    most = rate_verdict(min(failures_at_most, total), total, limit=limit, confidence=confidence)
    least = rate_verdict(min(failures, total), total, limit=limit, confidence=confidence)
    if most.outcome is not Outcome.FAIL or least.outcome is Outcome.FAIL:
        return least if least.outcome is Outcome.FAIL else most
    return least.inconclusive_because(
        f"between {failures:,} and {of_total(failures_at_most, total, 'request')} failed "
        f"(limit: below {format_share(float(limit))})",
        "These counters are too coarse for the limit: measure failures by a load of your own.",
    )


def _needs(limit: float, confidence: float, failures: int) -> str:
    """Return what a pass takes: "2,995 error-free requests are needed to claim < 0.1% at 95%"."""
    needed = f"{requests_needed(limit, confidence, failures):,}"
    if failures == 0:
        requests = f"{needed} error-free requests"
    elif failures == 1:
        requests = f"{needed} requests with no second failure"
    else:
        requests = f"{needed} requests with no more than these {failures:,} failures"
    claim = f"< {format_share(float(limit))} at {format_confidence(confidence)}"
    return f"{requests} are needed to claim {claim}"
