"""The bounds agree with binomial sums done by hand in exact fractions."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vllm_rollout.judge.binomial import chance_above, chance_at_most, percentile_ranks, share_bounds

SMALL_N = st.integers(1, 40)
SHARES = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)
CONFIDENCES = st.sampled_from([0.6, 0.9, 0.95, 0.99, 0.999])


def summed(k: int, n: int, p: float) -> Fraction:
    """P(X <= k), term by term."""
    share = Fraction(p)
    return sum(
        (comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k + 1)), start=Fraction(0)
    )


@settings(deadline=None)
@given(n=SMALL_N, p=SHARES, data=st.data())
def test_tails_equal_the_sums(n, p, data):
    k = data.draw(st.integers(0, n - 1))
    exact = summed(k, n, p)
    assert chance_at_most(k, n, p) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)
    assert chance_above(k, n, p) == pytest.approx(float(1 - exact), rel=1e-9, abs=1e-300)


@settings(deadline=None)
@given(n=SMALL_N, confidence=CONFIDENCES, data=st.data())
def test_share_bounds_are_the_shares_at_which_the_count_would_be_that_rare(n, confidence, data):
    count = data.draw(st.integers(0, n))
    lower, upper = share_bounds(count, n, confidence)
    rare = pytest.approx(1 - confidence, rel=1e-9)
    if count:
        assert float(1 - summed(count - 1, n, lower)) == rare
    else:
        assert lower == 0
    if count < n:
        assert float(summed(count, n, upper)) == rare
    else:
        assert upper == 1


@settings(deadline=None)
@given(n=SMALL_N, share=SHARES, confidence=CONFIDENCES)
def test_percentile_ranks_are_the_sharpest_that_keep_the_confidence(n, share, confidence):
    below = [summed(k, n, share) for k in range(n)]  # of k + 1 smallest values: P(X <= k)
    # On a tie between a sum and the confidence, rounding may go either way.
    assume(
        all(
            min(abs(p - Fraction(confidence)), abs(1 - p - Fraction(confidence))) > 1e-12
            for p in below
        )
    )
    uppers = [rank for rank in range(1, n + 1) if below[rank - 1] >= confidence]
    lowers = [rank for rank in range(1, n + 1) if 1 - below[rank - 1] >= confidence]
    assert percentile_ranks(n, share, confidence) == (
        max(lowers, default=None),
        min(uppers, default=None),
    )


@pytest.mark.parametrize(
    ("n", "rank"),
    [(58, None), (59, 59), (100, 99), (200, 196), (500, 484), (1000, 962), (5000, 4776)],
)
def test_upper_rank_of_p95_at_95_percent_confidence(n, rank):
    assert percentile_ranks(n, 0.95, 0.95)[1] == rank
