"""Goodput: all limits at once, and what did not come in time is a miss."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.goodput import GoodputLimits, goodput_verdict, meets_limits

ORDER = [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS]
CLAIM = {"target": 0.9, "confidence": 0.95}
LATENCY = GoodputLimits(latency_seconds=3.0)
ALL = GoodputLimits(ttft_seconds=0.5, inter_token_seconds=0.05, latency_seconds=3.0)


def test_no_request_is_never_a_pass():
    verdict = goodput_verdict(LATENCY, latency_seconds=[], **CLAIM)
    assert (verdict.outcome, verdict.n, verdict.measured) == (Outcome.INCONCLUSIVE, 0, None)
    assert "at least 29 requests" in verdict.remedy


def test_what_never_came_is_a_miss():
    unanswered = goodput_verdict(LATENCY, latency_seconds=[], censored=100, **CLAIM)
    assert (unanswered.outcome, unanswered.measured) == (Outcome.FAIL, 0.0)
    assert "missed: no answer 100" in unanswered.reason
    for missing in (math.nan, math.inf):
        verdict = goodput_verdict(LATENCY, latency_seconds=[missing] * 100, **CLAIM)
        assert (verdict.outcome, verdict.measured) == (Outcome.FAIL, 0.0)
        assert "missed: end to end 100" in verdict.reason


def test_a_clock_that_went_back_leaves_nothing_known():
    verdict = goodput_verdict(LATENCY, latency_seconds=[1.0] * 999 + [-0.001], **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.measured is None


def test_a_request_is_good_only_if_it_meets_every_limit_asked():
    times = {
        "ttft_seconds": [0.1, 0.6, 0.1, 0.1, 0.5, math.nan],
        "inter_token_seconds": [0.01, 0.01, 0.06, 0.0, 0.01, 0.01],
        "latency_seconds": [1.0, 1.0, 1.0, 3.1, 1.0, 1.0],
    }
    assert meets_limits(ALL, **times).tolist() == [True, False, False, False, False, False]
    assert meets_limits(LATENCY, **times).tolist() == [True, True, True, False, True, True]
    verdict = goodput_verdict(ALL, **times, **CLAIM)
    assert "1 of 6 requests met every limit" in verdict.reason
    assert verdict.reason.endswith("missed: first token 3, inter-token 1, end to end 1")


@pytest.mark.parametrize("n", [28, 29, 45, 46, 120])
def test_outcomes_agree_with_binomial_sums(n):
    def chance(misses: int, *, or_fewer: bool) -> float:
        counts = range(misses + 1) if or_fewer else range(misses, n + 1)
        return sum(math.comb(n, k) * 0.1**k * 0.9 ** (n - k) for k in counts)

    for misses in range(n + 1):
        verdict = goodput_verdict(
            LATENCY, latency_seconds=[1.0] * (n - misses), censored=misses, **CLAIM
        )
        assert verdict.passed == (chance(misses, or_fewer=True) < 0.05)
        assert (verdict.outcome is Outcome.FAIL) == (chance(misses, or_fewer=False) < 0.05)


def test_too_few_requests_say_how_many_would_do():
    verdict = goodput_verdict(LATENCY, latency_seconds=[1.0] * 28, rate_per_second=1.0, **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "About 29 requests would decide" in verdict.remedy
    assert "raise `load.duration` to 46s at 1/s" in verdict.remedy
    at_target = goodput_verdict(LATENCY, latency_seconds=[1.0] * 90 + [4.0] * 10, **CLAIM)
    assert "may never decide" in at_target.remedy


@settings(deadline=None)
@given(
    latencies=st.lists(st.one_of(st.floats(0, 6), st.just(math.nan)), min_size=1, max_size=150),
    censored=st.integers(0, 20),
    order=st.randoms(),
)
def test_a_miss_never_helps_and_the_order_is_nothing(latencies, censored, order):
    def judge(times, unanswered):
        return goodput_verdict(LATENCY, latency_seconds=times, censored=unanswered, **CLAIM)

    here = judge(latencies, censored)
    shuffled = list(latencies)
    order.shuffle(shuffled)
    assert judge(shuffled, censored) == here
    assert judge([math.nan, *latencies[1:]], censored).measured <= here.measured
    assert ORDER.index(judge(latencies, censored + 1).outcome) <= ORDER.index(here.outcome)
    assert here.lower <= here.measured <= here.upper
    assert here.passed == (here.remedy == "")


def test_senseless_claims_are_refused():
    for call in (
        GoodputLimits,
        lambda: GoodputLimits(ttft_seconds=0),
        lambda: GoodputLimits(latency_seconds=math.nan),
        lambda: meets_limits(ALL, latency_seconds=[1]),
        lambda: meets_limits(LATENCY, latency_seconds=[[1]]),
        lambda: meets_limits(
            ALL, ttft_seconds=[1], inter_token_seconds=[1, 2], latency_seconds=[1]
        ),
        lambda: goodput_verdict(LATENCY, latency_seconds=[1], censored=-1, **CLAIM),
        lambda: goodput_verdict(LATENCY, latency_seconds=[1], target=1, confidence=0.95),
        lambda: goodput_verdict(LATENCY, latency_seconds=[1], target=0.9, confidence=95),
    ):
        with pytest.raises(ValueError, match=r"must|cannot|give|given|needs"):
            call()
