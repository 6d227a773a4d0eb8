"""Canary against baseline: no data is never a pass, and what differs by enough is found."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.compare import compare_latency, compare_rate

ORDER = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
LATENCY = {"percentile": 95, "largest_ratio": 1.1, "confidence": 0.95}
RATE = {"largest_difference": 0.005, "confidence": 0.95}


def lognormal(seed, n=3000, *, slower=1.0):
    return slower * np.random.default_rng(seed).lognormal(0, 0.4, n)


BASELINE = lognormal(1)


@pytest.mark.parametrize(
    ("baseline", "canary", "named"),
    [
        ([], [1.0] * 500, "of the baseline"),
        ([1.0] * 500, [], "of the canary"),
        ([], [], "of the baseline nor of the canary"),
    ],
)
def test_no_request_on_either_side_is_never_a_pass(baseline, canary, named):
    latency = compare_latency(baseline, canary, **LATENCY)
    rate = compare_rate(0, len(baseline), 0, len(canary), **RATE)
    for verdict in (latency, rate):
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.reason == f"no request {named} was judged"
        assert (verdict.measured, verdict.lower, verdict.upper) == (None, None, None)
        assert verdict.remedy


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, -0.001])
def test_a_latency_that_is_no_time_on_either_side_is_never_a_pass(broken):
    for sides in (
        ([*BASELINE, broken], BASELINE),
        (BASELINE, [*BASELINE, broken]),
    ):
        verdict = compare_latency(*sides, **LATENCY, canary_censored=3)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "not a time" in verdict.reason


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_counts_that_are_no_numbers_are_never_a_pass(broken):
    for counts in ((broken, 9, 0, 9), (0, broken, 0, 9), (0, 9, broken, 9), (0, 9, 0, broken)):
        assert compare_rate(*counts, **RATE).outcome is Outcome.INCONCLUSIVE


def test_too_few_requests_to_compare_say_how_many_it_takes():
    verdict = compare_latency(BASELINE, BASELINE[:100], **LATENCY)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.remedy == "At least 108 requests are needed of each to compare P95."


def test_a_canary_that_is_slower_by_more_than_matters_fails():
    same = compare_latency(BASELINE, lognormal(2), **LATENCY)
    assert same.passed
    assert same.reason.endswith("at 95% confidence (limit: below 110%)")
    assert (same.n, same.unit) == (6000, "ratio")
    slow = compare_latency(BASELINE, lognormal(3, slower=1.3), **LATENCY)
    assert slow.outcome is Outcome.FAIL
    assert "canary over baseline is at least" in slow.reason
    near = compare_latency(BASELINE, lognormal(4, slower=1.08), **LATENCY)
    assert near.outcome is Outcome.INCONCLUSIVE
    assert "times as many requests to both" in near.remedy


def test_only_the_tail_of_a_canary_may_have_grown():
    """A comparison of the middle, or of ranks, would call these two alike."""
    canary = lognormal(5)
    canary[::10] += 5.0
    assert np.median(canary) < 1.1 * np.median(BASELINE)
    assert compare_latency(BASELINE, canary, **LATENCY).outcome is Outcome.FAIL


def test_unanswered_requests_are_slower_than_any():
    canary = compare_latency(BASELINE, BASELINE, **LATENCY, canary_censored=600)
    assert (canary.outcome, canary.lower) == (Outcome.FAIL, math.inf)
    both = compare_latency(
        BASELINE, BASELINE, **LATENCY, canary_censored=600, baseline_censored=600
    )
    assert (both.outcome, both.measured) == (Outcome.INCONCLUSIVE, None)
    assert "among requests without an answer" in both.remedy
    none = compare_latency([], [], **LATENCY, baseline_censored=500, canary_censored=500)
    assert none.outcome is Outcome.INCONCLUSIVE


def test_a_canary_that_fails_more_by_more_than_matters_fails():
    assert compare_rate(3, 3000, 4, 3000, **RATE).passed
    assert compare_rate(3, 3000, 60, 3000, **RATE).outcome is Outcome.FAIL
    # As bad as the baseline is not worse than the baseline.
    assert compare_rate(1500, 3000, 1400, 3000, **RATE).passed
    open_still = compare_rate(0, 400, 0, 400, **RATE)
    assert open_still.outcome is Outcome.INCONCLUSIVE
    assert open_still.reason == (
        "0 of 400 requests failed for the canary and 0 of 400 for the baseline; canary minus "
        "baseline is between -0.7511% and 0.7511%, at 95% confidence (limit: below 0.5%)"
    )
    assert "About 2 times as many requests to both" in open_still.remedy
    assert "may never decide" in compare_rate(0, 1000, 5, 1000, **RATE).remedy


@settings(deadline=None, max_examples=40)
@given(
    baseline=st.tuples(st.integers(0, 30), st.integers(0, 300)),
    canary=st.tuples(st.integers(0, 30), st.integers(0, 300)),
    largest=st.floats(0, 0.3),
)
def test_one_more_failure_of_the_canary_never_helps_it(baseline, canary, largest):
    def judge(failed, succeeded):
        counts = (baseline[0], sum(baseline), failed, failed + succeeded)
        return compare_rate(*counts, largest_difference=largest, confidence=0.95)

    here = judge(*canary)
    if here.measured is not None:
        assert here.lower <= here.measured <= here.upper
        worse = judge(canary[0] + 1, canary[1])
        assert ORDER.index(worse.outcome) >= ORDER.index(here.outcome)
    assert here.passed == (here.remedy == "")


def test_senseless_claims_are_refused():
    for call in (
        lambda: compare_latency([1], [1], **(LATENCY | {"percentile": 100})),
        lambda: compare_latency([1], [1], **(LATENCY | {"largest_ratio": 0})),
        lambda: compare_latency([1], [1], **(LATENCY | {"largest_ratio": math.nan})),
        lambda: compare_latency([1], [1], **(LATENCY | {"confidence": 95})),
        lambda: compare_latency([1], [1], **LATENCY, canary_censored=-1),
        lambda: compare_latency([[1]], [1], **LATENCY),
        lambda: compare_rate(0, 1, 0, 1, **(RATE | {"largest_difference": 1})),
        lambda: compare_rate(0, 1, 0, 1, **(RATE | {"largest_difference": -0.1})),
        lambda: compare_rate(0, 1, 0, 1, **(RATE | {"confidence": 0.5})),
        lambda: compare_rate(2, 1, 0, 1, **RATE),
        lambda: compare_rate(0, 1, 0.5, 1, **RATE),
        lambda: compare_rate(0, 1, -1, 1, **RATE),
    ):
        with pytest.raises(ValueError, match=r"must|cannot|not a count"):
            call()
