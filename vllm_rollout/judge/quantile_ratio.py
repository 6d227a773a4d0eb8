"""Exact bounds for the ratio of one quantile of two samples; no law is assumed for either.

A ratio r is ruled out as too high when, whatever time t the first sample's quantile is, the two
samples together speak against it: so few of the first are at or below t that its quantile must
lie higher, or so many of the second are below r x t that its quantile must lie lower. At the true
t both counts are binomial and independent, so their p-values combine exactly (Stouffer's method
with weights: Lipták 1958); ruling out every t keeps the risk, as every t includes the true one.

This is as sharp as the normal approximation of the two errors together, where bounding each
quantile on its own takes more than twice the requests. A rank test (Mann–Whitney, Hodges–Lehmann)
would judge a shift of the middle and stay blind to a tail that grew; a bootstrap of two modes
with the quantile between them is wrong far more often than it states.
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtr, ndtri

from vllm_rollout.judge.binomial import chance_above, chance_at_most

ALONE = 0.05
"""Part of the risk at which one sample alone rules a time out; as much for either."""


def quantile_ratio_bounds(
    first: NDArray[np.float64], second: NDArray[np.float64], share: float, confidence: float
) -> tuple[float, float]:
    """(lower, upper) bound of the second sample's `share` quantile over the first's.

    Both samples hold times from 0 up, infinity for one that never came. Each bound is wrong with
    a chance of at most 1 - `confidence`; 0 or infinity where so few times give none.
    """
    first, second = np.sort(first), np.sort(second)
    inverse = _upper(second, first, share, confidence)
    return (1 / inverse if inverse else math.inf), _upper(first, second, share, confidence)


def _upper(
    first: NDArray[np.float64], second: NDArray[np.float64], share: float, confidence: float
) -> float:
    """Upper bound of the ratio of quantiles, second over first; both samples in order."""
    ranks_first, ranks_second = _ranks_to_rule_out(first.size, second.size, share, confidence)
    if not ranks_first.size or ranks_first[0] == 0:
        return math.inf
    ...
