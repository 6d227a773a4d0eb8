"""Bounds for the ratio of two quantiles: wrong no more often than stated, whatever the laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.judge.binomial import percentile_ranks
from vllm_rollout.judge.quantile_ratio import quantile_ratio_bounds, times_needed

RUNS = 500
MOST_WRONG = RUNS * 0.05 + 4 * math.sqrt(RUNS * 0.05 * 0.95)

TIMES = st.lists(st.floats(0.001, 10), min_size=108, max_size=200)


def two_modes(rng, n):
    """The P95 lies between the modes: a sample's own is of the one as often as of the other."""
    return np.where(rng.random(n) < 0.05, 10.0, 1.0) * rng.uniform(0.99, 1.01, n)


def lognormal(rng, n):
    """Its P95 is 1.2."""
    return 1.2 * rng.lognormal(0, 0.5, n) / math.exp(0.5 * 1.6448536)


def heavy(rng, n):
    """Its P95 is 1, and its tail is long."""
    return (rng.pareto(1.1, n) + 1) * 0.05 ** (1 / 1.1)


# Between two modes every time is the P95, so the true ratio may be the lowest or the highest.
P95S = {two_modes: (1.01, 9.9), lognormal: (1.2, 1.2), heavy: (1.0, 1.0)}


@pytest.mark.parametrize(
    ("first", "second"),
    [(two_modes, lognormal), (lognormal, two_modes), (two_modes, two_modes), (heavy, lognormal)],
)
@pytest.mark.parametrize(("n_first", "n_second"), [(400, 400), (1500, 200)])
def test_the_bounds_are_wrong_within_the_risk(first, second, n_first, n_second):
    rng = np.random.default_rng(11)
    lowest, highest = P95S[second][0] / P95S[first][1], P95S[second][1] / P95S[first][0]
    too_low = too_high = 0
    for _ in range(RUNS):
        lower, upper = quantile_ratio_bounds(first(rng, n_first), second(rng, n_second), 0.95, 0.95)
        too_low += upper < highest
        too_high += lower > lowest
    assert too_low <= MOST_WRONG
    assert too_high <= MOST_WRONG


@pytest.mark.parametrize(("n_first", "n_second"), [(3000, 3000), (3000, 600), (600, 3000)])
def test_the_bound_is_nearer_than_that_of_each_quantile_on_its_own(n_first, n_second):
    rng = np.random.default_rng(12)
    each = math.sqrt(0.95)
    lowest, _ = percentile_ranks(n_first, 0.95, each)
    _, highest = percentile_ranks(n_second, 0.95, each)
    together, alone = 0.0, 0.0
    for _ in range(50):
        first, second = np.sort(lognormal(rng, n_first)), np.sort(lognormal(rng, n_second))
        together += math.log(quantile_ratio_bounds(first, second, 0.95, 0.95)[1])
        alone += math.log(second[highest - 1] / first[lowest - 1])
    # The requests it takes go with the square: 1.4 times fewer at the least.
    assert (alone / together) ** 2 > 1.4


@settings(deadline=None, max_examples=50)
@given(first=TIMES, second=TIMES, scale=st.sampled_from([0.25, 2.0, 8.0]), order=st.randoms())
def test_bounds_scale_mirror_and_know_no_order(first, second, scale, order):
    lower, upper = bounds = quantile_ratio_bounds(np.array(first), np.array(second), 0.95, 0.95)
    assert lower <= upper
    shuffled = list(second)
    order.shuffle(shuffled)
    assert quantile_ratio_bounds(np.array(first), np.array(shuffled), 0.95, 0.95) == bounds
    scaled = quantile_ratio_bounds(np.array(first), scale * np.array(second), 0.95, 0.95)
    assert scaled == pytest.approx((scale * lower, scale * upper))
    mirrored = quantile_ratio_bounds(np.array(second), np.array(first), 0.95, 0.95)
    assert mirrored == pytest.approx((1 / upper, 1 / lower))
    slower = quantile_ratio_bounds(np.array(first), np.array([*second[1:], 11.0]), 0.95, 0.95)
    assert slower[0] >= lower
    assert slower[1] >= upper


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_as_many_times_as_needed_bound_the_ratio_on_both_sides(share, confidence):
    needed = times_needed(share, confidence)
    for n_first, n_second in ((needed, needed), (needed, 3 * needed), (50 * needed, needed)):
        first, second = np.linspace(1, 2, n_first), np.linspace(1, 2, n_second)
        lower, upper = quantile_ratio_bounds(first, second, share, confidence)
        assert 0.5 <= lower <= 1 <= upper <= 2
    few = np.linspace(1, 2, needed - 1)
    lower, upper = quantile_ratio_bounds(few, few, share, confidence)
    assert (lower, upper) == (0.0, math.inf)


def test_times_that_never_came_bound_nothing_among_themselves():
    came, never = np.full(1000, 1.0), np.full(1000, math.inf)
    assert quantile_ratio_bounds(came, never, 0.95, 0.95) == (math.inf, math.inf)
    assert quantile_ratio_bounds(never, came, 0.95, 0.95) == (0.0, 0.0)
    assert quantile_ratio_bounds(never, never, 0.95, 0.95) == (0.0, math.inf)
    assert quantile_ratio_bounds(0 * came, 0 * came, 0.95, 0.95) == (0.0, math.inf)
