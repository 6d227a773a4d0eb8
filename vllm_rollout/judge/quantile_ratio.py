"""Exact bounds for the ratio of one quantile of two samples; no distribution is assumed.

A ratio r is ruled out as too high when, whatever time t the first sample's quantile is, the two
samples together speak against it: so few of the first are at or below t that its quantile must
lie higher, and so many of the second are below r x t that its quantile must lie lower. At the
true t both counts are binomial and independent, so the normal scores of their two p-values are at
most two independent normal ones, and `_Contour` says how far out both together are by chance.
Ruling out every t keeps the risk, since the true one is among them.

Bounding each quantile on its own takes half as many requests again, or twice as many. A rank test
(Mann–Whitney, Hodges–Lehmann) would judge a shift of the middle and stay blind to a tail that
grew; a bootstrap, or adding up squared errors, fails where the quantile lies between two modes.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.binomial import chance_above, chance_at_most
from vllm_rollout.judge.sample_size import requests_needed_for_percentile

_Floats = NDArray[np.float64]
_Ranks = NDArray[np.int64]


def quantile_ratio_bounds(
    first: _Floats, second: _Floats, share: float, confidence: float
) -> tuple[float, float]:
    """(lower, upper) bound of the second sample's `share` quantile over the first's.

    Both samples, independent and not empty, hold times from 0 up, infinity for one that never
    came. Each bound is wrong with a chance of at most 1 - `confidence`; it is 0 or infinity where
    so few times bound nothing.
    """
    first, second = np.sort(first), np.sort(second)
    inverse = _upper(second, first, share, confidence)
    lower = 1 / inverse if inverse > 0 else math.inf
    return lower, _upper(first, second, share, confidence)


def times_needed(share: float, confidence: float) -> int:
    """Return how many times in each of two samples of equal size let both bounds exist."""
    from scipy.special import ndtr

    alone = float(ndtr(_Contour.of(1, 1, confidence).second_alone))
    return requests_needed_for_percentile(100 * max(share, 1 - share), alone)


@dataclass(frozen=True, slots=True)
class _Contour:
    """Which normal scores (of the first sample, of the second) are too far out for chance.

    Those on or beyond a circle about (-`first`, -`second`), negative distances taken as 0. The
    squared distance of two independent normal scores from that point is noncentral chi-squared
    with two degrees of freedom. The circle touches the sum that matters when both samples have
    one shape, and lets either sample alone rule out what lies far from the other's quantile.
    """

    first: float
    second: float
    radius: float

    @classmethod
    def of(cls, n_first: int, n_second: int, confidence: float) -> "_Contour":
        """The contour passed by chance at most 1 - `confidence` of the time."""
        from scipy.special import chndtrix

        # Between a straight line (far away) and a quarter circle (0): 2 to 6 are equally sharp.
        away = 3.0
        # A quantile's error falls as the root of its sample: the smaller one has the greater part.
        first, second = (away * math.sqrt(n / (n_first + n_second)) for n in (n_second, n_first))
        return cls(first, second, math.sqrt(chndtrix(confidence, 2, away**2)))

    @property
    def first_alone(self) -> float:
        """The score at which the first sample rules a time out whatever the second says."""
        return self.radius - self.first

    @property
    def second_alone(self) -> float:
        """The score at which the second sample does, whatever the first says."""
        return self.radius - self.second

    def second_given(self, scores: _Floats) -> _Floats:
        """The scores that the second sample must reach beside these of the first."""
        distance = np.clip(scores + self.first, 0, self.radius)
        needed: _Floats = np.sqrt(self.radius**2 - distance**2) - self.second
        return needed


def _upper(first: _Floats, second: _Floats, share: float, confidence: float) -> float:
    """Upper bound of the ratio, second over first; both in ascending order."""
    contour = _Contour.of(first.size, second.size, confidence)
    ranks = _pairs_of_ranks(first.size, second.size, share, contour)
    if ranks is None:
        return math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = second[ranks[1] - 1] / first[ranks[0] - 1]
    # Nothing follows from 0/0, nor from two times that never came.
    return float(np.where(np.isnan(ratios), math.inf, ratios).max())


def _pairs_of_ranks(
    n_first: int, n_second: int, share: float, contour: _Contour
) -> tuple[_Ranks, _Ranks] | None:
    """Pairs of ranks j and m, 1 the smallest: a ratio above all of theirs is ruled out.

    The first sample's j-th value stands for the times with j of the first at or below them; m is
    how many of the second below the ratio of such a time it takes. None if no number is enough.
    """

    from scipy.special import ndtr, ndtri
    from scipy.stats import binom

    def first_rank(score: float) -> int:
        """The lowest rank with less than `score` against it."""
        chance = float(ndtr(-score))
        return bisect_left(
            range(n_first), True, key=lambda j: chance_at_most(j, n_first, share) > chance
        )

    def second_rank(score: float) -> int:
        """The lowest rank with `score` or more against it."""
        chance = float(ndtr(-score))
        return 1 + bisect_left(
            range(n_second), True, key=lambda m: chance_above(m, n_second, share) <= chance
        )

    # Below these ranks the first sample rules out alone; above them it adds nothing.
    firsts = np.arange(first_rank(contour.first_alone), first_rank(-contour.first) + 1)
    last = second_rank(contour.second_alone)
    if firsts[0] == 0 or last > n_second:
        return None
    needed = contour.second_given(-ndtri(binom.cdf(firsts, n_first, share)))
    seconds = np.arange(second_rank(float(needed.min())), last + 1)
    chosen = np.searchsorted(-binom.sf(seconds - 1, n_second, share), -ndtr(-needed))
    # Two methods for the same sum may differ in the last digit, and the last rank is always enough.
    return firsts, seconds[np.minimum(chosen, seconds.size - 1)]
