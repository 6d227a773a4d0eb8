"""Exact bounds for the difference of two shares of independent samples.

How likely the two counts are depends not only on the difference but also on the share of the one
side, which nobody knows. So a difference is ruled out only where counts like these would be too
unlikely whatever that share is, among all that its own count leaves possible (Chan & Zhang 1999,
Biometrics 55:1202, with the confinement of Berger & Boos 1994, JASA 89:1012). Which other counts
speak as strongly for a small difference is settled by a bound in closed form; it makes the result
sharp, while the exact binomial sum over them is what keeps the risk.
"""

import math
from bisect import bisect_left
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.binomial import share_bounds

_Floats = NDArray[np.float64]

_RISK_OF_CONFINING = 0.02
"""Part of the risk spent on confining the unknown share to an interval."""

_SHARES_TRIED = 64
"""Across that interval, if the other share is no better known: a tenth of a standard error apart.
Twenty times as many move the bound by less than 1% of its distance from the measured difference."""

_NEGLIGIBLE = 1e-10
_PRECISION = 1e-9
_MOST_TIMES = 1000


@lru_cache(maxsize=256)  # a watch asks again and again about counts that stand still
def share_difference_bounds(
    first: int, n_first: int, second: int, n_second: int, confidence: float
) -> tuple[float, float]:
    """(lower, upper) bound of the second share less the first, from -1 to 1.

    The shares were seen `first` times in `n_first` > 0 trials and `second` times in
    `n_second` > 0, all independent. Each bound is wrong with a chance of at most 1 - `confidence`.
    """
    return (
        -_upper(second, n_second, first, n_first, confidence),
        _upper(first, n_first, second, n_second, confidence),
    )


def times_to_decide(
    first: int, n_first: int, second: int, n_second: int, *, limit: float, confidence: float
) -> int | None:
    """About how many times as many trials of both settle whether the difference is below `limit`.

    It is taken that both shares stay as they are. None when a thousand times as many would not.
    """
    below = second / n_second - first / n_first < limit

    def settled(times: int) -> bool:
        a, n, b, m = (times * count for count in (first, n_first, second, n_second))
        if below:
            return bool(_hybrid_upper(a, n, b, m, confidence) < limit)
        return bool(-_hybrid_upper(b, m, a, n, confidence) > limit)

    times = bisect_left(range(_MOST_TIMES + 1), True, lo=1, key=settled)
    return times if times <= _MOST_TIMES else None


def _upper(first: int, n_first: int, second: int, n_second: int, confidence: float) -> float:
    """Upper bound of the second share less the first: the largest difference not ruled out."""
    from scipy.optimize import brentq
    from scipy.stats import binom

    confining = (1 - confidence) * _RISK_OF_CONFINING
    risk = 1 - confidence - confining
    low, high = share_bounds(first, n_first, 1 - confining / 2)
    firsts = np.arange(
        binom.ppf(_NEGLIGIBLE, n_first, low), binom.isf(_NEGLIGIBLE, n_first, high) + 1
    ).clip(min=0)
    seen = float(_hybrid_upper(first, n_first, second, n_second, confidence))
    seconds = _most_alike(firsts, n_first, n_second, seen + _NEGLIGIBLE, confidence)

    # The chance changes with the share as fast as the larger sample tells shares apart.
    tries = math.ceil(_SHARES_TRIED * math.sqrt(max(1.0, n_second / n_first)))

    def beyond_risk(difference: float) -> float:
        """The chance of such counts at `difference`, less the risk; falls as it grows."""
        # Where the second share would be below 0 it is 0, and the first the nearest it can be.
        lowest, highest = min(max(low, -difference), high), min(high, 1 - difference)
        if highest < lowest:
            return -risk
        shares = _evenly(lowest, highest, tries)[:, np.newaxis]
        others = np.maximum(shares + difference, 0)
        alike = binom.pmf(firsts, n_first, shares) * binom.cdf(seconds, n_second, others)
        return float(np.sum(alike, axis=1).max()) - risk

    if beyond_risk(1.0) > 0:
        return 1.0
    return min(1.0, float(brentq(beyond_risk, -1.0, 1.0, xtol=_PRECISION)) + _PRECISION)


def _evenly(lowest: float, highest: float, tries: int) -> _Floats:
    """Shares from `lowest` to `highest`, about as many standard errors apart everywhere."""
    angles = np.linspace(math.asin(math.sqrt(lowest)), math.asin(math.sqrt(highest)), tries)
    shares: _Floats = np.clip(np.sin(angles) ** 2, lowest, highest)
    return shares


def _most_alike(
    firsts: _Floats, n_first: int, n_second: int, seen: float, confidence: float
) -> _Floats:
    """Return, for each first count, the highest second one whose closed bound is within `seen`.

    -1 where there is none. The closed bound grows with the second count, so it is bisected.
    """
    bound = partial(_hybrid_upper, firsts, n_first, n_second=n_second, confidence=confidence)
    least, most = np.full(firsts.size, -1.0), np.full(firsts.size, float(n_second))
    while np.any(least < most):
        middle = np.ceil((least + most) / 2)
        within = bound(second=middle) <= seen
        least = np.where(within, middle, least)
        most = np.where(within, most, middle - 1)
    return least


def _hybrid_upper(
    first: _Floats | int,
    n_first: int,
    second: _Floats | int,
    n_second: int,
    confidence: float,
) -> _Floats:
    """About the upper bound, in closed form, for many counts at once.

    Source: Newcombe 1998, Statistics in Medicine 17:873, method 10, with the one-sided limits of
    Clopper & Pearson 1934. It alone may err more often than stated, at 99% notably.
    """
    from scipy.special import betaincinv

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    # The beta quantile is undefined for the counts at which the bound is 0 or 1.
    low = np.where(a > 0, betaincinv(np.maximum(a, 1), n_first - a + 1, 1 - confidence), 0)
    high = np.where(b < n_second, betaincinv(b + 1, np.maximum(n_second - b, 1), confidence), 1)
    share_a, share_b = a / n_first, b / n_second
    upper: _Floats = share_b - share_a + np.hypot(high - share_b, share_a - low)
    return upper
