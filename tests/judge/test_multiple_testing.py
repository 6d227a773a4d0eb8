"""Many gates, one decision: neither promotion nor blame more often wrong than stated."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.judge import Outcome, Verdict, check, worst
from vllm_rollout.judge.binomial import fail_p_value
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.goodput import GoodputLimits, goodput_verdict
from vllm_rollout.judge.multiple_testing import family_confidence, judge_family
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict

CONFIDENCE = 0.95


def verdict_of(outcome: Outcome, p_value: float | None = None) -> Verdict:
    return Verdict(
        outcome=outcome, reason="measured", confidence=CONFIDENCE, n=100, p_value=p_value
    )


PASS = verdict_of(Outcome.PASS, 0.5)


def fail(p_value: float | None) -> Verdict:
    return verdict_of(Outcome.FAIL, p_value)


def outcomes(p_values, method):
    judged = judge_family([fail(p) for p in p_values], confidence=CONFIDENCE, method=method)
    return [verdict.outcome is Outcome.FAIL for verdict in judged]


def test_holm_lets_stand_what_bonferroni_does_and_more():
    p_values = [0.02, 0.01, 0.04, 0.015]
    assert outcomes(p_values, "none") == [True] * 4
    assert outcomes(p_values, "holm") == [True] * 4
    assert outcomes(p_values, "bonferroni") == [False, True, False, False]
    # One that does not stand takes all less sure ones with it.
    assert outcomes([0.001, 0.02, 0.02, 0.03], "holm") == [True, False, False, False]


def test_a_fail_that_may_be_chance_promotes_nothing_and_says_why():
    twenty = [fail(0.03)] + [PASS] * 19
    judged = judge_family(twenty, confidence=CONFIDENCE)
    assert judged[0].outcome is Outcome.INCONCLUSIVE
    assert judged[0].reason == (
        "measured; among 20 gates a fail has to be 99.75% sure, and this one is 97%"
    )
    assert judged[0].remedy
    assert judged[1:] == tuple(twenty[1:])
    assert worst(verdict.outcome for verdict in judged) is Outcome.INCONCLUSIVE


def test_a_fail_of_unknown_p_value_is_as_sure_as_its_own_confidence():
    assert judge_family([fail(None)], confidence=CONFIDENCE) == (fail(None),)
    judged = judge_family([fail(None), PASS], confidence=CONFIDENCE)
    assert judged[0].outcome is Outcome.INCONCLUSIVE


def test_plain_facts_share_no_risk():
    crashed = check(False, "a replica crashed")
    facts = [crashed] + [check(True, "ready")] * 19
    judged = judge_family([*facts, fail(0.05)], confidence=CONFIDENCE)
    assert judged == (*facts, fail(0.05))


@given(
    st.lists(st.tuples(st.sampled_from(list(Outcome)), st.none() | st.floats(0, 1)), max_size=12),
    st.randoms(),
    st.sampled_from(["holm", "bonferroni"]),
)
def test_only_fails_are_weakened_whatever_the_order(members, order, method):
    shuffled = list(members)
    order.shuffle(shuffled)
    found = []
    for family in (members, shuffled):
        verdicts = [verdict_of(*member) for member in family]
        judged = judge_family(verdicts, confidence=CONFIDENCE, method=method)
        for before, after in zip(verdicts, judged, strict=True):
            assert after == before or (before.outcome, after.outcome) == (
                Outcome.FAIL,
                Outcome.INCONCLUSIVE,
            )
        found.append(sorted(map(str, zip(family, [v.outcome for v in judged], strict=True))))
    assert found[0] == found[1]


def test_twenty_gates_at_their_limits_blame_the_build_no_more_often_than_one():
    """Every gate is just at its limit: a fail of any of them is wrong."""
    gates, requests, limit, runs = 20, 2000, 0.02, 1000
    failures = np.random.default_rng(3).binomial(requests, limit, size=(runs, gates))

    @cache
    def judged(count: int) -> Verdict:
        return rate_verdict(count, requests, limit=limit, confidence=CONFIDENCE)

    blamed = {"none": 0, "holm": 0}
    for run in failures:
        verdicts = [judged(int(count)) for count in run]
        for method in ("none", "holm"):
            family = judge_family(verdicts, confidence=CONFIDENCE, method=method)
            blamed[method] += any(v.outcome is Outcome.FAIL for v in family)
    assert blamed["none"] > 0.4 * runs
    assert blamed["holm"] <= 0.05 * runs + 4 * math.sqrt(runs * 0.05 * 0.95)


@pytest.mark.parametrize(("bad", "total", "allowed"), [(30, 300, 0.05), (5, 80, 0.01)])
def test_a_gate_fails_at_every_confidence_its_p_value_allows(bad, total, allowed):
    p = fail_p_value(bad, total, allowed)
    exact = sum(
        math.comb(total, k) * allowed**k * (1 - allowed) ** (total - k)
        for k in range(bad, total + 1)
    )
    assert p == pytest.approx(exact)
    latencies = [1.0] * (total - bad) + [4.0] * bad
    for shift, outcome in ((-1e-6, Outcome.FAIL), (1e-6, Outcome.INCONCLUSIVE)):
        confidence = 1 - p + shift
        rate = rate_verdict(bad, total, limit=allowed, confidence=confidence)
        percentile = percentile_verdict(
            latencies, percentile=100 * (1 - allowed), limit_seconds=3, confidence=confidence
        )
        buckets = bucket_verdict(
            {3.0: total - bad, math.inf: total},
            percentile=100 * (1 - allowed),
            limit_seconds=3,
            confidence=confidence,
        )
        goodput = goodput_verdict(
            GoodputLimits(latency_seconds=3),
            target=1 - allowed,
            latency_seconds=latencies,
            confidence=confidence,
        )
        for verdict in (rate, percentile, buckets, goodput):
            assert verdict.outcome is outcome
            assert verdict.p_value == pytest.approx(p)


def test_nothing_counted_is_no_evidence_of_a_fail():
    assert fail_p_value(0, 0, 0.01) == fail_p_value(0, 500, 0.01) == 1


def test_the_first_fail_needs_the_familys_whole_confidence():
    assert family_confidence(0.95, 1) == pytest.approx(0.95)
    assert family_confidence(0.95, 20) == pytest.approx(0.9975)
    assert family_confidence(0.95, 20, "none") == 0.95


def test_senseless_families_are_refused():
    for call in (
        lambda: family_confidence(0.95, 0),
        lambda: family_confidence(95, 3),
        lambda: family_confidence(0.95, 3, "fisher"),
        lambda: judge_family([fail(math.nan)], confidence=0.95),
        lambda: judge_family([fail(1.5)], confidence=0.95),
        lambda: judge_family([], confidence=2),
    ):
        with pytest.raises(ValueError, match=r"must|not|at least|need|lies"):
            call()
