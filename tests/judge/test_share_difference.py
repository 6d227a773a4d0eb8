"""Bounds for the difference of two shares: wrong no more often than stated, whatever the shares."""

import math

import pytest
from scipy.special import comb

from vllm_rollout.judge.binomial import share_bounds
from vllm_rollout.judge.share_difference import share_difference_bounds, times_to_decide


def chances(n: int, share: float) -> list[float]:
    return [comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize(("n_first", "n_second", "confidence"), [(6, 9, 0.95), (12, 4, 0.99)])
def test_every_outcome_summed_the_bounds_are_wrong_within_the_risk(n_first, n_second, confidence):
    bounds = {
        (a, b): share_difference_bounds(a, n_first, b, n_second, confidence)
        for a in range(n_first + 1)
        for b in range(n_second + 1)
    }
    shares = [0, 0.003, 0.01, 0.03, *(k / 20 for k in range(1, 20)), 0.98, 1]
    for first in shares:
        of_first = chances(n_first, first)
        for second in shares:
            of_second = chances(n_second, second)
            difference, too_low, too_high = second - first, 0.0, 0.0
            for (a, b), (lower, upper) in bounds.items():
                too_low += of_first[a] * of_second[b] * (upper < difference)
                too_high += of_first[a] * of_second[b] * (lower > difference)
            assert max(too_low, too_high) <= 1 - confidence


def test_bounds_follow_the_counts():
    """More of the second raises both, more of the first lowers both; swapped, they mirror."""
    previous = (-1.0, -1.0)
    for second in range(0, 41, 4):
        bounds = share_difference_bounds(3, 30, second, 40, 0.95)
        assert bounds[0] >= previous[0]
        assert bounds[1] >= previous[1]
        assert bounds[0] <= second / 40 - 0.1 <= bounds[1]
        fewer = share_difference_bounds(4, 30, second, 40, 0.95)
        assert fewer[0] <= bounds[0]
        assert fewer[1] <= bounds[1]
        lower, upper = share_difference_bounds(second, 40, 3, 30, 0.95)
        assert (-upper, -lower) == pytest.approx(bounds, abs=1e-7)
        previous = bounds


def test_the_bounds_are_as_sharp_as_one_share_alone_when_the_other_is_known():
    known = share_difference_bounds(0, 1_000_000, 2, 500, 0.95)
    alone = share_bounds(2, 500, 0.95)
    assert known == pytest.approx(alone, rel=0.03)


def test_all_of_one_and_none_of_the_other_is_the_whole_range():
    lower, upper = share_difference_bounds(0, 50, 50, 50, 0.95)
    assert upper == 1.0
    assert 0.88 < lower < 1.0
    assert share_difference_bounds(50, 50, 0, 50, 0.95)[0] == -1.0


def test_a_plan_says_how_many_times_the_requests_would_do():
    plan = times_to_decide(0, 400, 0, 400, limit=0.001, confidence=0.95)
    assert plan is not None
    assert share_difference_bounds(0, 400 * plan, 0, 400 * plan, 0.95)[1] < 0.00101
    assert times_to_decide(10, 1000, 20, 1000, limit=0.01, confidence=0.95) is None
    fail = times_to_decide(10, 1000, 20, 1000, limit=0.005, confidence=0.95)
    assert fail is not None
    assert math.isclose(fail, 3, abs_tol=1)
