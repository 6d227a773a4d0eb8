"""The percentile's verdict: right as often as it says, and never a pass without evidence."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.percentile import percentile_verdict

ORDER = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
CLAIM = {"percentile": 95, "limit_seconds": 3.0, "confidence": 0.95}
LATENCIES = st.lists(st.floats(0, 10), min_size=1, max_size=150)


def test_no_request_is_never_a_pass():
    verdict = percentile_verdict([], **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert (verdict.measured, verdict.lower, verdict.upper, verdict.n) == (None, None, None, 0)
    assert "at least 59 requests" in verdict.remedy


@settings(deadline=None)
@given(latencies=LATENCIES, broken=st.sampled_from([math.nan, math.inf, -math.inf, -0.001]))
def test_a_latency_that_is_no_time_makes_the_whole_inconclusive(latencies, broken):
    latencies.insert(len(latencies) // 2, broken)
    verdict = percentile_verdict(latencies, **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "not a time" in verdict.reason
    assert verdict.measured is None


def test_fifty_eight_fast_requests_cannot_show_a_p95():
    verdict = percentile_verdict([0.1] * 58, **CLAIM, rate_per_second=10)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.upper is None
    assert verdict.remedy == (
        "At least 59 requests are needed; you sent 58: raise `load.duration` to 9s at 10/s."
    )
    assert percentile_verdict([0.1] * 59, **CLAIM).passed


def test_unanswered_requests_are_slower_than_any():
    fast = [0.1] * 95
    assert percentile_verdict(fast, **CLAIM).passed
    few = percentile_verdict(fast, **CLAIM, censored=5)
    assert few.outcome is Outcome.INCONCLUSIVE
    assert (few.n, few.measured, few.upper) == (100, 0.1, math.inf)
    assert "5 of 100 requests failed" in few.reason
    many = percentile_verdict(fast, **CLAIM, censored=30)
    assert many.outcome is Outcome.FAIL
    assert many.lower == math.inf
    assert "beyond any limit" in many.reason
    assert percentile_verdict([], **CLAIM, censored=100).outcome is Outcome.FAIL


def test_at_the_limit_is_neither_below_nor_above_it():
    verdict = percentile_verdict([3.0] * 1000, **CLAIM)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "so near the limit" in verdict.remedy
    assert percentile_verdict([math.nextafter(3.0, 0)] * 1000, **CLAIM).passed
    assert percentile_verdict([math.nextafter(3.0, 4)] * 1000, **CLAIM).outcome is Outcome.FAIL


def test_bucket_width_is_added_outward_to_both_bounds():
    below, above = [2.999] * 1000, [3.001] * 1000
    assert percentile_verdict(below, **CLAIM).passed
    assert percentile_verdict(above, **CLAIM).outcome is Outcome.FAIL
    for latencies in (below, above):
        verdict = percentile_verdict(latencies, **CLAIM, resolution=0.001)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.lower < 3.0 < verdict.upper
        assert verdict.measured == latencies[0]


def test_too_close_to_tell_says_how_many_requests_would():
    latencies = [1.0] * 384 + [4.0] * 16  # 4% are slow: below 5%, but not surely
    verdict = percentile_verdict(latencies, **CLAIM, rate_per_second=10)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.remedy == (
        "About 1,332 requests would decide, if 4% of them go on taking longer than 3 s; "
        "you sent 400: raise `load.duration` to 3m at 10/s."
    )
    assert percentile_verdict([1.0] * 1296 + [4.0] * 54, **CLAIM).passed


def test_the_bounds_are_the_planned_order_statistics():
    verdict = percentile_verdict(np.arange(1, 101) / 100, **CLAIM)
    assert verdict.measured == 0.95
    assert verdict.upper == 0.99
    assert verdict.lower == 0.91
    assert percentile_verdict(np.arange(1, 1001), **(CLAIM | {"percentile": 99.9})).measured == 999


@pytest.mark.parametrize(
    "wrong",
    [{"percentile": p} for p in (0, 100, 120, -5, math.nan)]
    + [{"limit_seconds": limit} for limit in (0, -1, math.nan, math.inf)]
    + [{"confidence": c} for c in (0.5, 1, 95, math.nan)]
    + [{"censored": -1}]
    + [{"resolution": r} for r in (-0.1, 1, math.nan)],
)
def test_senseless_questions_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|cannot"):
        percentile_verdict([1.0] * 100, **(CLAIM | wrong))


def test_a_table_of_latencies_is_refused():
    with pytest.raises(ValueError, match="one row"):
        percentile_verdict(np.ones((2, 50)), **CLAIM)


@settings(deadline=None)
@given(latencies=LATENCIES, censored=st.integers(0, 20), seed=st.randoms())
def test_order_does_not_matter_and_the_input_is_left_alone(latencies, censored, seed):
    shuffled = latencies.copy()
    seed.shuffle(shuffled)
    array = np.array(shuffled)
    before = array.copy()
    verdict = percentile_verdict(array, **CLAIM, censored=censored)
    assert verdict == percentile_verdict(latencies, **CLAIM, censored=censored)
    assert np.array_equal(array, before)


@settings(deadline=None)
@given(
    latencies=LATENCIES,
    censored=st.integers(0, 20),
    slower=st.floats(0, 10),
    percentile=st.sampled_from([50, 75, 90, 95]),
    limit=st.floats(0.1, 10),
    resolution=st.floats(0, 0.2),
    data=st.data(),
)
def test_a_slower_or_lost_request_never_helps(
    latencies, censored, slower, percentile, limit, resolution, data
):
    def rank(seconds: list[float], lost: int, width: float) -> int:
        verdict = percentile_verdict(
            seconds,
            percentile=percentile,
            limit_seconds=limit,
            confidence=0.95,
            censored=lost,
            resolution=width,
        )
        assert verdict.passed == (verdict.remedy == "")
        return ORDER.index(verdict.outcome)

    here = rank(latencies, censored, 0.0)
    victim = data.draw(st.integers(0, len(latencies) - 1))
    others = latencies[:victim] + latencies[victim + 1 :]
    assert rank([*others, latencies[victim] + slower], censored, 0.0) >= here
    assert rank(others, censored + 1, 0.0) >= here
    # A coarser measurement only ever makes a verdict less sure.
    assert rank(latencies, censored, resolution) in {here, ORDER.index(Outcome.INCONCLUSIVE)}


QUANTILES = {
    "lognormal": lambda u: np.exp(0.6 * ndtri(u)),
    "pareto": lambda u: (1 - u) ** (-1 / 1.5),
    "bimodal": lambda u: np.where(u < 0.9, u, 5 + u),
}


@pytest.mark.parametrize("percentile", [50, 95])
@pytest.mark.parametrize("law", QUANTILES)
def test_a_service_just_at_the_limit_is_wrongly_judged_no_more_often_than_stated(law, percentile):
    quantile, runs = QUANTILES[law], 1000
    limit = float(quantile(np.float64(percentile / 100)))
    outcomes = [
        percentile_verdict(
            latencies, percentile=percentile, limit_seconds=limit, confidence=0.95
        ).outcome
        for latencies in quantile(np.random.default_rng(20250127).random((runs, 400)))
    ]
    # 5% of the runs, and four standard deviations of the simulation itself.
    most = runs * 0.05 + 4 * math.sqrt(runs * 0.05 * 0.95)
    assert outcomes.count(Outcome.PASS) <= most
    assert outcomes.count(Outcome.FAIL) <= most
