"""Requests in order of time: bursts weaken a verdict, and nothing ever strengthens one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.goodput import GoodputLimits, goodput_verdict
from vllm_rollout.judge.ordered_verdicts import (
    goodput_verdict_in_order,
    percentile_verdict_in_order,
    rate_verdict_in_order,
)
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict

RATE = {"limit": 0.05, "confidence": 0.95}
P95 = {"percentile": 95, "limit_seconds": 3.0, "confidence": 0.95}


def stalls(n, length, every):
    """Which requests meet a stall: `length` in a row of each `every`."""
    return np.arange(n) % every >= every - length


def latencies(late):
    """3.5 s to 4 s for the late ones, 0.5 s to 1 s for the others."""
    return np.random.default_rng(5).uniform(0.5, 1.0, len(late)) + 3 * late


def test_failures_in_bursts_do_not_pass_where_the_same_number_on_its_own_would():
    bursty = stalls(2000, 20, 500)  # 4%, in 4 bursts
    scattered = stalls(2000, 1, 25)
    assert rate_verdict_in_order(scattered, **RATE) == rate_verdict(80, 2000, **RATE)
    assert rate_verdict_in_order(scattered, **RATE).passed
    verdict = rate_verdict_in_order(bursty, **RATE, rate_per_second=10)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.n == 2000
    assert verdict.measured == 0.04
    assert "came in bursts" in verdict.reason
    assert "80 of 2,000 requests failed" in verdict.reason
    assert "load.duration" in verdict.remedy


def test_latencies_in_stalls_do_not_pass_where_scattered_ones_would():
    bursty = latencies(stalls(2000, 20, 500))
    scattered = latencies(stalls(2000, 1, 25))
    assert percentile_verdict_in_order(scattered, **P95).passed
    verdict = percentile_verdict_in_order(bursty, **P95)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.lower < verdict.measured < verdict.limit < verdict.upper
    assert "came in bursts" in verdict.reason


def test_misses_in_bursts_do_not_reach_a_goodput_that_scattered_ones_would():
    limits, claim = GoodputLimits(latency_seconds=3.0), {"target": 0.95, "confidence": 0.95}
    scattered, bursty = stalls(2000, 1, 25), stalls(2000, 20, 500)
    plain = goodput_verdict(limits, latency_seconds=latencies(scattered), **claim)
    assert plain.passed
    same = goodput_verdict_in_order(limits, latency_seconds=latencies(scattered), **claim)
    assert same == plain
    verdict = goodput_verdict_in_order(limits, latency_seconds=latencies(bursty), **claim)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.lower < plain.lower < verdict.measured == 0.96 < plain.upper < verdict.upper
    assert "came in bursts" in verdict.reason
    none = goodput_verdict_in_order(limits, latency_seconds=[], **claim)
    assert none.outcome is Outcome.INCONCLUSIVE


def test_stalls_shorter_than_the_limit_are_bursts_too():
    # All below the limit: what is uncertain is where P95 itself lies.
    slow = latencies(stalls(2000, 20, 200)) / 2
    verdict = percentile_verdict_in_order(slow, **P95)
    assert verdict.passed
    assert verdict.upper > percentile_verdict(slow, **P95).upper
    assert "came in bursts" in verdict.reason


def in_spells(rng, count, length):
    """`count` stretches of `length` among 6,000 requests, at random places."""
    slow = np.zeros(6000, dtype=np.bool_)
    for begin in rng.integers(0, 6000 - length, count):
        slow[begin : begin + length] = True
    return slow


@pytest.mark.parametrize(
    ("count", "length", "slower", "share"),
    [(1, 300, 4, 0.9), (1, 300, 6, 0.9), (3, 100, 6, 0.9), (3, 50, 10, 0.75), (3, 20, 20, 0.75)],
)
def test_a_healthy_service_with_slow_spells_passes(count, length, slower, share):
    rng = np.random.default_rng(41)
    passes = 0
    for _ in range(60):
        times = rng.lognormal(math.log(0.3), 0.42, 6000)
        times[in_spells(rng, count, length)] *= slower
        passes += percentile_verdict_in_order(times, **P95).passed
    assert passes / 60 >= share


@pytest.mark.parametrize(("length", "share"), [(10, 0.04), (50, 0.08)])
def test_bursts_at_the_limit_seldom_pass(length, share):
    rng = np.random.default_rng(42)
    passes = 0
    for _ in range(300):
        bad, at = np.zeros(6000, dtype=np.bool_), -50 * length
        while at < 6000:  # bursts of random length are 5% of it
            begin = at + int(rng.geometric(1 / (19 * length)))
            at = begin + int(rng.geometric(1 / length))
            bad[max(begin, 0) : max(at, 0)] = True
        passes += percentile_verdict_in_order(latencies(bad), **P95).passed
    assert passes / 300 <= share


def test_a_service_near_the_limit_is_watched_at_half_of_it():
    """A tenth takes 2 s to 2.2 s, in ten bursts: what is at 3 s alone would show no dependence."""
    times = latencies(stalls(2000, 20, 200)) - 1.6 * stalls(2000, 20, 200)
    verdict = percentile_verdict_in_order(times, **P95)
    assert "slow requests came in bursts" in verdict.reason
    quick = percentile_verdict_in_order(times / 2, **P95)
    assert quick == percentile_verdict(times / 2, **P95)


def test_a_percentile_without_a_bound_is_called_that():
    verdict = percentile_verdict_in_order(latencies(stalls(600, 200, 600)), **P95)
    assert verdict.upper is None
    assert verdict.reason.startswith("P95 could not be bounded from above: slow requests came in")
    assert "are worth 1; counted one by one, P95 is" in verdict.reason


def test_stalls_far_below_the_limit_say_nothing_about_it():
    quick = latencies(stalls(200, 20, 100)) / 100
    assert percentile_verdict_in_order(quick, **P95) == percentile_verdict(quick, **P95)
    assert percentile_verdict(quick, **P95).passed


def test_many_bursts_decide_after_all():
    bad = stalls(40_000, 10, 1000)
    verdict = rate_verdict_in_order(bad, **RATE)
    assert verdict.passed
    assert rate_verdict(400, 40_000, **RATE).upper < verdict.upper < 0.05


def test_a_burst_that_may_come_is_guarded_against_before_it_does():
    none = np.zeros(100, dtype=np.bool_)
    assert rate_verdict_in_order(none, **RATE).passed
    verdict = rate_verdict_in_order(none, **RATE, burst=10)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "may share one cause" in verdict.reason
    assert rate_verdict_in_order(np.zeros(590, dtype=np.bool_), **RATE, burst=10).passed


def test_too_few_requests_for_one_burst_bound_nothing():
    verdict = rate_verdict_in_order(np.zeros(5, dtype=np.bool_), **RATE, burst=10)
    assert (verdict.lower, verdict.upper) == (0.0, 1.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_unanswered_requests_are_slower_than_all_at_their_place():
    late = stalls(2000, 20, 500)
    times = np.where(late, math.inf, 1.0)
    verdict = percentile_verdict_in_order(times, **P95)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "80 of 2,000 requests failed" in verdict.reason
    assert math.isinf(verdict.upper)


@pytest.mark.parametrize("broken", [math.nan, -math.inf, -1.0])
def test_broken_latencies_are_never_a_pass(broken):
    verdict = percentile_verdict_in_order([1.0] * 500 + [broken], **P95)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "not a time" in verdict.reason


def test_nothing_is_never_a_pass():
    assert percentile_verdict_in_order([], **P95).outcome is Outcome.INCONCLUSIVE
    assert rate_verdict_in_order([], **RATE).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("burst", [0, -1, 1.5, math.nan])
def test_a_burst_is_a_number_of_requests(burst):
    with pytest.raises(ValueError, match="burst"):
        rate_verdict_in_order([False] * 100, **RATE, burst=burst)


@given(st.integers(1, 40), st.integers(41, 400), st.integers(0, 3000), st.sampled_from([1, 4, 30]))
def test_a_verdict_in_order_is_never_surer_than_the_plain_one(length, every, n, burst):
    bad = stalls(n, length, every)
    times = latencies(bad)
    for plain, in_order in (
        (
            rate_verdict(int(bad.sum()), n, **RATE),
            rate_verdict_in_order(bad, **RATE, burst=burst),
        ),
        (
            percentile_verdict(times, **P95),
            percentile_verdict_in_order(times, **P95, burst=burst),
        ),
    ):
        assert in_order.outcome in {plain.outcome, Outcome.INCONCLUSIVE}
        assert in_order.measured == plain.measured
        if n:
            assert (in_order.lower or 0) <= (plain.lower or 0)
            assert plain.upper is not None or in_order.upper is None
            assert in_order.upper is None or in_order.upper >= plain.upper
