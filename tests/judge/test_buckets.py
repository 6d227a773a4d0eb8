"""Verdicts from Prometheus buckets: as sure as the exact ones, and never surer than a bucket."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.percentile import percentile_verdict

ORDER = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
CLAIM = {"percentile": 95, "limit_seconds": 3.0, "confidence": 0.95}
BOUNDS = (0.5, 1.0, 2.5, 5.0, 10.0, math.inf)
SCRAPE = (
    Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth" / "metrics_1_after.body"
).read_text(encoding="utf-8")
LATENCIES = st.lists(st.one_of(st.floats(0, 12), st.sampled_from(BOUNDS[:-1])), max_size=150)


def histogram(latencies: Sequence[float]) -> dict[float, float]:
    return {bound: sum(seconds <= bound for seconds in latencies) for bound in BOUNDS}


def test_no_request_is_never_a_pass():
    verdict = bucket_verdict(histogram([]), **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert (verdict.measured, verdict.lower, verdict.upper, verdict.n) == (None, None, None, 0)
    assert "at least 59" in verdict.remedy


@pytest.mark.parametrize(
    ("cumulative", "why"),
    [
        ({}, "up to infinity"),
        ({0.5: 900, 2.5: 1000}, "up to infinity"),
        ({0.5: math.nan, math.inf: 1000}, "whole numbers"),
        ({0.5: 1000, math.inf: math.nan}, "whole numbers"),
        ({0.5: 1000, math.inf: math.inf}, "whole numbers"),
        ({0.5: -1, math.inf: 1000}, "whole numbers"),
        ({0.5: 999.5, math.inf: 1000.25}, "whole numbers"),
        ({0.5: 1000, 2.5: 999, math.inf: 1000}, "fewer requests"),
        ([(0.5, 1000), (0.5, 1000), (math.inf, 1000)], "in order"),
        ([(math.nan, 1000), (math.inf, 1000)], "in order"),
    ],
)
def test_what_is_no_histogram_is_never_a_pass(cumulative, why):
    verdict = bucket_verdict(cumulative, **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert why in verdict.reason
    assert verdict.remedy
    assert verdict.measured is None


@pytest.mark.parametrize(
    "claim",
    [{"percentile": p} for p in (0, 100, math.nan)]
    + [{"limit_seconds": s} for s in (0, -1, math.inf, math.nan)]
    + [{"confidence": c} for c in (0.5, 1, 95)]
    + [{"resets": -1}, {"missing_scrapes": -1}],
)
def test_senseless_claims_are_refused(claim):
    with pytest.raises(ValueError, match=r"must|not"):
        bucket_verdict(histogram([1]), **(CLAIM | claim))


def test_no_number_of_requests_decides_a_limit_inside_the_bucket_of_the_percentile():
    """Interpolation would pass this at P95 = 2.9 s, and every one of the slow took 4.9 s."""
    many = bucket_verdict(histogram([0.4] * 940_000 + [4.9] * 60_000), **CLAIM)
    assert many.outcome is Outcome.INCONCLUSIVE
    assert (many.lower, many.measured, many.upper) == (2.5, 5.0, 5.0)
    assert "3 s lies inside a bucket: they can decide 2.5 s and 5 s" in many.reason
    assert "a bound at 3 s" in many.remedy
    below_all = bucket_verdict(histogram([0.1] * 1000), **(CLAIM | {"limit_seconds": 0.2}))
    assert "the lowest limit they can decide is 0.5 s" in below_all.reason
    above_all = bucket_verdict(histogram([60] * 1000), **(CLAIM | {"limit_seconds": 30}))
    assert "the highest limit they can decide is 10 s" in above_all.reason


def test_a_limit_at_a_bound_is_decided_either_way():
    at_bound = CLAIM | {"limit_seconds": 2.5}
    assert bucket_verdict(histogram([2.4] * 59), **at_bound).passed
    assert bucket_verdict(histogram([2.6] * 59), **at_bound).outcome is Outcome.FAIL
    close = bucket_verdict(histogram([2.4] * 960 + [2.6] * 40), **at_bound)
    assert close.outcome is Outcome.INCONCLUSIVE
    assert "lies inside" not in close.reason
    assert "requests would decide" in close.remedy


def test_what_the_observer_missed_is_said():
    verdict = bucket_verdict(histogram([1] * 100), **CLAIM, resets=1, missing_scrapes=2)
    assert verdict.passed
    assert verdict.reason.endswith(
        "1 counter reset and 2 scrapes missing: requests may be uncounted"
    )


def test_the_buckets_of_vllm_decide_neither_of_the_workflows_limits():
    """There is no 3 s (SLO) and no 6 s (trigger) among them."""
    buckets = {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(SCRAPE)
        for sample in family.samples
        if sample.name == "vllm:e2e_request_latency_seconds_bucket"
    }
    few = bucket_verdict(buckets, **CLAIM)
    assert (few.outcome, few.n) == (Outcome.INCONCLUSIVE, 13)
    assert bucket_verdict({bound: 10 * n for bound, n in buckets.items()}, **CLAIM).passed
    slower = {bound: 10 * n if bound >= 10 else 0 for bound, n in buckets.items()}
    six = bucket_verdict(slower, **(CLAIM | {"limit_seconds": 6.0}))
    assert "they can decide 5 s and 10 s" in six.reason


@settings(deadline=None)
@given(latencies=LATENCIES, limit=st.sampled_from([0.2, 0.5, 2.0, 2.5, 3.0, 10.0, 11.0]))
def test_the_buckets_say_what_the_latencies_say_or_less(latencies, limit):
    claim = CLAIM | {"limit_seconds": limit}
    coarse = bucket_verdict(histogram(latencies), **claim)
    fine = percentile_verdict(latencies, **claim)
    if fine.lower is not None:
        assert coarse.lower <= fine.lower
    if fine.upper is not None:
        assert coarse.upper >= fine.upper
    assert not coarse.passed or fine.upper <= limit
    assert coarse.outcome is not Outcome.FAIL or fine.lower > limit
    assert coarse.passed == (coarse.remedy == "")


@settings(deadline=None)
@given(latencies=LATENCIES, slower=st.integers(0, 149), order=st.randoms())
def test_a_slower_request_never_helps_and_the_order_of_the_buckets_is_nothing(
    latencies, slower, order
):
    def rank(seconds: Sequence[float]) -> int:
        return ORDER.index(bucket_verdict(histogram(seconds), **CLAIM).outcome)

    def shuffled() -> Verdict:
        pairs = list(histogram(latencies).items())
        order.shuffle(pairs)
        return bucket_verdict(pairs, **CLAIM)

    assert shuffled() == bucket_verdict(histogram(latencies), **CLAIM)
    if slower < len(latencies):
        changed = [*latencies[:slower], latencies[slower] + 3, *latencies[slower + 1 :]]
        assert rank(changed) >= rank(latencies)


@pytest.mark.parametrize("n", [1, 20, 59, 60, 93, 94, 120])
def test_outcomes_agree_with_binomial_sums(n):
    def chance(slow: int, *, or_fewer: bool) -> float:
        counts = range(slow + 1) if or_fewer else range(slow, n + 1)
        return sum(math.comb(n, k) * 0.05**k * 0.95 ** (n - k) for k in counts)

    for slow in range(min(n, 20) + 1):
        verdict = bucket_verdict(
            {2.5: n - slow, 5.0: n, math.inf: n}, **(CLAIM | {"limit_seconds": 2.5})
        )
        assert verdict.passed == (chance(slow, or_fewer=True) <= 0.05)
        assert (verdict.outcome is Outcome.FAIL) == (chance(slow, or_fewer=False) <= 0.05)
