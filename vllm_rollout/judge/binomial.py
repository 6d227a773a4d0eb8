"""Exact one-sided bounds for counts and for percentiles, from the binomial distribution.

Both questions are one: of n independent requests, how many may fall on the bad side by chance?
Every function takes `confidence` as a fraction, meant for each side on its own.

Tail sums are regularized incomplete beta functions, P(X <= k) = I_{1-p}(n - k, k + 1)
(NIST Digital Library of Mathematical Functions, 8.17.5): exact for any n, and defined for
fractional k, which planning uses.
"""

from bisect import bisect_left, bisect_right

# SciPy takes longer to import than most commands take: here, and not above, so that only a verdict
# waits for it.


def chance_at_most(k: float, n: int, p: float) -> float:
    """P(X <= k) for X binomial with `n` trials of probability `p`; k < n."""
    from scipy.special import betainc

    return float(betainc(n - k, k + 1, 1 - p))


def chance_above(k: float, n: int, p: float) -> float:
    """P(X > k), to full precision where it is small; -1 < k < n."""
    from scipy.special import betaincc

    return float(betaincc(n - k, k + 1, 1 - p))


def share_bounds(count: int, n: int, confidence: float) -> tuple[float, float]:
    """Clopper–Pearson (lower, upper) bound of a share seen `count` times in `n` > 0 trials.

    Source: Clopper & Pearson 1934, Biometrika 26:404, in the beta-quantile form.
    """
    from scipy.special import betaincinv

    lower = float(betaincinv(count, n - count + 1, 1 - confidence)) if count else 0.0
    upper = float(betaincinv(count + 1, n - count, confidence)) if count < n else 1.0
    return lower, upper


def percentile_ranks(n: int, share: float, confidence: float) -> tuple[int | None, int | None]:
    """Ranks (1 is the smallest of `n`) whose values bound the `share` quantile below and above.

    A bound that no rank of so few observations can give is None. No distribution is assumed;
    ties only make the bounds safer.

    Source: David & Nagaraja, Order Statistics, 3rd ed., section 7.1: the r-th smallest value is
    at least the quantile with chance P(X <= r - 1) or more, X ~ Binomial(n, share).
    """
    upper = bisect_left(range(n), confidence, key=lambda k: chance_at_most(k, n, share)) + 1
    lower = bisect_right(range(n), -confidence, key=lambda k: -chance_above(k, n, share))
    return lower or None, upper if upper <= n else None


def fail_p_value(bad: int, n: int, allowed: float) -> float:
    """The chance of `bad` or more of `n` requests if the share `allowed` were bad; 1 of none.

    The p-value of a fail: of a rate with the failures and its limit, of a percentile with the
    requests slower than its limit and 1 - percentile / 100. A verdict fails at every confidence
    below 1 - p, and at none above.
    """
    return chance_above(bad - 1, n, allowed) if bad else 1.0
