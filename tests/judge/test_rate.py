"""The failure rate's verdict: right as often as it says, and never a pass without evidence."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.rate import rate_verdict, requests_needed

ORDER = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
CLAIM = {"limit": 0.001, "confidence": 0.95}


def test_no_request_is_never_a_pass():
    verdict = rate_verdict(0, 0, **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert (verdict.measured, verdict.lower, verdict.upper, verdict.n) == (None, None, None, 0)
    assert "2,995 error-free requests" in verdict.remedy


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_counts_that_are_no_numbers_are_never_a_pass(broken):
    for failures, total in ((0, broken), (broken, 5000), (broken, broken)):
        verdict = rate_verdict(failures, total, **CLAIM)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.remedy


@pytest.mark.parametrize(
    ("failures", "total"), [(2, 1), (-1, 10), (0, -1), (0.5, 10), (0, 10.5), (-1, -1)]
)
def test_impossible_counts_are_refused(failures, total):
    with pytest.raises(ValueError, match="not a count"):
        rate_verdict(failures, total, **CLAIM)


@pytest.mark.parametrize(
    "claim",
    [{"limit": limit} for limit in (0, -0.1, 1.1, math.nan, math.inf)]
    + [{"confidence": confidence} for confidence in (0.5, 1, 95, math.nan)],
)
def test_senseless_claims_are_refused(claim):
    with pytest.raises(ValueError, match="must"):
        rate_verdict(0, 10, **(CLAIM | claim))


def test_the_pass_begins_at_the_planned_number_of_requests():
    for failures in (0, 1, 3, 10):
        needed = requests_needed(0.001, 0.95, failures)
        assert rate_verdict(failures, needed, **CLAIM).passed
        assert rate_verdict(failures, needed - 1, **CLAIM).outcome is Outcome.INCONCLUSIVE


def test_too_few_requests_say_how_many_and_how_long():
    verdict = rate_verdict(0, 400, **CLAIM, rate_per_second=10)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.remedy == (
        "2,995 error-free requests are needed to claim < 0.1% at 95%; you sent 400: "
        "raise `load.duration` to 6m at 10/s."
    )
    assert "4,742 requests with no second failure" in rate_verdict(1, 400, **CLAIM).remedy
    assert "no more than these 2 failures" in rate_verdict(2, 1000, **CLAIM).remedy


def test_a_share_proven_above_the_limit_fails():
    verdict = rate_verdict(9, 400, **CLAIM)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.lower > 0.001
    assert verdict.reason == (
        "9 of 400 requests failed: at least 1.179% fail, at 95% confidence (limit: below 0.1%)"
    )
    assert verdict.remedy


def test_all_failing_at_a_limit_of_all_is_no_pass():
    assert rate_verdict(500, 500, limit=1, confidence=0.95).outcome is Outcome.INCONCLUSIVE


@settings(deadline=None)
@given(
    failures=st.integers(0, 200),
    successes=st.integers(0, 5000),
    limit=st.floats(0.0001, 1),
    confidence=st.floats(0.51, 0.9999),
)
def test_one_more_failure_never_helps_and_one_more_success_never_hurts(
    failures, successes, limit, confidence
):
    def rank(failed: int, succeeded: int) -> int:
        verdict = rate_verdict(failed, failed + succeeded, limit=limit, confidence=confidence)
        return ORDER.index(verdict.outcome)

    here = rank(failures, successes)
    if failures + successes:
        assert rank(failures + 1, successes) >= here
        assert rank(failures, successes + 1) <= here
    verdict = rate_verdict(failures, failures + successes, limit=limit, confidence=confidence)
    if verdict.n:
        assert verdict.lower <= verdict.measured <= verdict.upper
    assert verdict.passed == (verdict.remedy == "")


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_a_service_just_at_the_limit_is_wrongly_judged_no_more_often_than_stated(share):
    failures = np.random.default_rng(20250127).binomial(1000, share, size=2000)
    outcomes = [rate_verdict(k, 1000, limit=share, confidence=0.95).outcome for k in failures]
    # 5% of 2,000, and four standard deviations of the simulation itself.
    most = 100 + 4 * math.sqrt(2000 * 0.05 * 0.95)
    assert outcomes.count(Outcome.PASS) <= most
    assert outcomes.count(Outcome.FAIL) <= most
