"""Sample sizes: how many requests a claim takes, and the text for it."""

import math
from bisect import bisect_left
from collections.abc import Callable
from datetime import timedelta

from vllm_rollout.judge.binomial import chance_above, chance_at_most, share_bounds
from vllm_rollout.model.percentiles import check_percentile
from vllm_rollout.model.units import format_duration, format_share, format_value

MOST_REQUESTS = 10**9
"""Beyond this many no load test will go, and a plan says so in place of a figure."""

_MARGIN = 3.0
"""Standard deviations of a Poisson count."""
_WEEK_SECONDS = 7 * 86_400


def requests_needed(limit: float, confidence: float, failures: int = 0) -> int:
    """Fewest requests, `failures` of them failed, that show a failure share below `limit`.

    `limit` and `confidence` are fractions. With no failure, about 3 / limit at 95%.

    Raises:
        ValueError: `limit` is not above 0 and at most 1, `confidence` not between 0.5 and 1,
            or `failures` is negative.
    """
    check_confidence(confidence)
    check_limit(limit)
    if failures < 0:
        raise ValueError(f"failures cannot be negative: {failures}")
    return _first(lambda n: share_bounds(failures, n, confidence)[1] < limit, start=failures + 1)


def requests_needed_for_percentile(percentile: float, confidence: float) -> int:
    """Fewest requests whose slowest bounds `percentile` (95 for P95) from above.

    Raises:
        ValueError: `percentile` is not from 1 to below 100, or `confidence` not between 0.5 and 1.
    """
    check_confidence(confidence)
    check_percentile(percentile)
    share = percentile / 100
    return _first(lambda n: chance_at_most(n - 1, n, share) >= confidence, start=1)


def requests_to_decide(bad_share: float, limit: float, confidence: float) -> int | None:
    """About how many requests settle whether the share of bad ones is below `limit`.

    It is taken that `bad_share` of them stay bad. None if even `MOST_REQUESTS` would not
    settle it: the share is too near the limit, or at it.
    """

    def settled(n: int) -> bool:
        # So few bad ones, or so many, as a share at the limit would seldom bring by chance.
        bad = bad_share * n
        by_chance = (
            chance_at_most(bad, n, limit) if bad_share < limit else chance_above(bad - 1, n, limit)
        )
        return by_chance <= 1 - confidence

    return _first(settled, start=1) if settled(MOST_REQUESTS) else None


def more_load(requests: int, rate_per_second: float | None) -> str:
    """Return how to get `requests` requests: "raise `load.duration` to 5m …".

    Random arrivals of a load bring now more, now fewer: three standard deviations are added.
    Without a rate (requests per second), or with one of 0, the duration stays open. Where it
    would take more than a week, the rate is what to raise.
    """
    if not rate_per_second or not 0 < rate_per_second < math.inf:
        return "raise `load.duration`"
    seconds = (requests + _MARGIN * math.sqrt(requests)) / rate_per_second
    if seconds > _WEEK_SECONDS:
        return "raise `load.rate`"
    step = 60 if seconds > 60 else 1  # nobody writes 4m59.5s in a policy
    whole = timedelta(seconds=math.ceil(seconds / step) * step)
    rate = format_value(rate_per_second, "1/s")
    return f"raise `load.duration` to {format_duration(whole)} at {rate}"


def format_confidence(confidence: float) -> str:
    """`95%`; to six digits, as a shared risk leaves many."""
    return format_share(float(f"{confidence:.6g}"))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence at which the two bounds would cross or never exist.

    Raises:
        ValueError: not between 0.5 and 1, both left out.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(
            f"confidence must lie between 0.5 and 1, not {confidence}{_as_fraction(confidence)}"
        )


def check_limit(limit: float) -> None:
    """Refuse what no share of failures can be held against.

    Raises:
        ValueError: not above 0 and at most 1.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"limit must be above 0 and at most 1, not {limit}{_as_fraction(limit)}")


def check_target(target: float) -> None:
    """Refuse what no share of good requests can be held against.

    Raises:
        ValueError: not between 0 and 1, both left out.
    """
    if not 0 < target < 1:
        raise ValueError(f"target must lie between 0 and 1, not {target}{_as_fraction(target)}")


def _as_fraction(number: float) -> str:
    """How to write what was given as a percentage; empty for what can be none."""
    return f": write {number / 100:g} for {number:g}%" if 1 < number <= 100 else ""


def check_limit_seconds(limit_seconds: float) -> None:
    """Refuse what no latency can be held against.

    Raises:
        ValueError: not a positive, finite time.
    """
    if not 0 < limit_seconds < math.inf:
        raise ValueError(f"limit_seconds must be a positive time, not {limit_seconds}")


def _first(holds: Callable[[int], bool], *, start: int) -> int:
    """Smallest n >= `start` for which `holds`, which once true stays true."""
    high = start
    while not holds(high):
        high *= 2
    return bisect_left(range(high), True, lo=start, key=holds)
