"""Exact one-sided bounds for the difference of two shares, each counted in its own requests.

The share of one side is unknown, and the risk of being wrong about the difference depends on it.
So a difference is ruled out only where the counts would be too unlikely whatever that share is,
over all the values that its own count leaves possible. Which counts speak more strongly for a
small difference than those seen is settled by a closed-form bound (Newcombe's); that choice makes
the result sharp, while the exact binomial sum over all such counts is what keeps the stated risk.

Sources: Chan & Zhang 1999, Biometrics 55:1202 (exact bounds by inverting the test at every
difference); Berger & Boos 1994, JASA 89:1012 (the unknown share confined to an interval);
Newcombe 1998, Statistics in Medicine 17:873, method 10, here with Clopper–Pearson limits (order).
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv
from scipy.stats import binom

from vllm_rollout.judge.binomial import share_bounds

_FOR_UNKNOWN_SHARE = 0.02
"""Part of the risk that is spent on confining the unknown share."""

_GRID = 64
"""Values tried for the unknown share: about a tenth of its standard error apart."""

_NEGLIGIBLE = 1e-10
_MOST_TIMES = 1000

type_counts = NDArray[np.float64]


def difference_bounds(
    first: int, n_first: int, second: int, n_second: int, confidence: float
) -> tuple[float, float]:
    """(lower, upper) bound of the second share less the first, from -1 to 1.

    `first` of `n_first` > 0 trials and `second` of `n_second` > 0, all of them independent. Each
    bound is wrong with a chance of at most 1 - `confidence`.
    """
    return (
        -_upper(second, n_second, first, n_first, confidence),
        _upper(first, n_first, second, n_second, confidence),
    )
