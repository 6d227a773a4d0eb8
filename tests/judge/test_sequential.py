"""Verdicts while the load runs: looked at after every request, at the risk of a single look."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stopping import LIMITS, stop_at, wald_at

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.anytime_valid import percentile_rank_at_most
from vllm_rollout.judge.effective_sample_size import BadRequests
from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below
from vllm_rollout.judge.sequential import SequentialPercentile, SequentialRate

ORDER = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
CLAIM = {"limit": 0.05, "confidence": 0.95}
P95 = {"percentile": 95, "limit_seconds": 3.0, "confidence": 0.95}


def rate_after(bad, **claim):
    """The verdict after the last of `bad`, given one request at a time."""
    test = SequentialRate(**(CLAIM | claim))
    for one in bad:
        verdict = test.update(int(one), 1)
    return verdict


@pytest.mark.parametrize("limit", LIMITS)
def test_it_is_nearly_as_sharp_as_the_sharpest_test_there_is(limit):
    good, bad = LIMITS[limit]
    horizon = round(100 / limit)
    for share, rates in ((good, (good, limit)), (bad, (limit, bad))):
        wald = wald_at(*rates, share=share, horizon=horizon).requests
        named = stop_at(limit, good, bad, share=share, horizon=horizon).requests
        unnamed = stop_at(limit, share=share, horizon=horizon).requests
        assert named <= 1.35 * wald
        assert unnamed <= 2.5 * wald


@pytest.mark.parametrize("named", [False, True])
def test_it_decides_at_the_first_request_at_which_an_e_value_is_high_enough(named):
    rng = np.random.default_rng(21)
    good, bad = LIMITS[0.05] if named else (None, None)
    below, above = e_process_below(0.05, good), e_process_above(0.05, bad)
    enough = math.log(20)
    for share in (0.005, 0.03, 0.05, 0.08, 0.2) * 4:
        test, failures = SequentialRate(**CLAIM, good=good, bad=bad), 0
        for n, failed in enumerate(rng.random(600) < share, 1):
            failures += int(failed)
            expected = Outcome.INCONCLUSIVE
            if below.log_e_value(failures, n, 0.05) >= enough:
                expected = Outcome.PASS
            elif above.log_e_value(failures, n, 0.05) >= enough:
                expected = Outcome.FAIL
            verdict = test.update(int(failed), 1)
            assert (verdict.outcome, verdict.n) == (expected, n)
            assert verdict.measured == failures / n
            if expected is not Outcome.INCONCLUSIVE:
                break


@pytest.mark.parametrize("percentile", [50, 95, 99])
def test_a_rank_bounds_a_percentile_only_if_the_e_process_says_so(percentile):
    """As many may be slower as leave the e-value high enough; too few requests bound nothing."""
    slower = 1 - percentile / 100
    process, enough = e_process_below(slower), math.log(20)
    for n in (0, 1, 10, 100, 1000):
        rank = percentile_rank_at_most(n, percentile, 0.95)
        if rank is None:
            assert process.log_e_value(0, n, slower) < enough
            continue
        assert process.log_e_value(n - rank, n, slower) >= enough
        assert process.log_e_value(n - rank + 1, n, slower) < enough
        assert percentile / 100 < rank / n <= 1
    assert rank is not None


def test_the_first_decision_is_final():
    test = SequentialRate(**CLAIM)
    passed = test.update(0, 500)
    assert passed.passed
    assert test.update(500, 500) is passed
    test = SequentialRate(**CLAIM)
    failed = test.update(50, 50)
    assert failed.outcome is Outcome.FAIL
    assert failed.remedy
    assert test.update(0, 10_000) is failed


def test_the_bounds_of_a_decision_lie_on_its_side_of_the_limit():
    passed, failed = rate_after([0] * 500), rate_after([1] * 50)
    assert passed.lower <= passed.measured <= passed.upper < 0.05
    assert 0.05 < failed.lower <= failed.measured <= failed.upper


@pytest.mark.parametrize("burst", [1, 7])
@pytest.mark.parametrize("failures", [0, 2])
def test_the_remedy_says_exactly_how_many_requests_a_pass_takes(failures, burst):
    test = SequentialRate(**CLAIM, burst=burst, rate_per_second=10)
    verdict = test.update(failures, 2 * failures)
    needed = int(verdict.remedy.split("at least ")[1].split(" ")[0].replace(",", ""))
    assert "`load.duration`" in verdict.remedy
    while verdict.n < needed - 1:
        verdict = test.update(0, 1)
        assert verdict.outcome is Outcome.INCONCLUSIVE
    assert test.update(0, 1).passed


def test_no_request_is_never_a_pass():
    for verdict in (
        SequentialRate(**CLAIM).update(0, 0),
        SequentialPercentile(**P95).update([]),
        SequentialPercentile(**P95).update(np.array([]), censored=0),
    ):
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert (verdict.measured, verdict.lower, verdict.upper, verdict.n) == (None, None, None, 0)
        assert verdict.remedy


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_count_that_is_no_number_spoils_the_rest(broken):
    for batch in ((0, broken), (broken, 10), (broken, broken)):
        test = SequentialRate(**CLAIM)
        test.update(0, 40)
        assert test.update(*batch).outcome is Outcome.INCONCLUSIVE
        later = test.update(0, 100_000)
        assert later.outcome is Outcome.INCONCLUSIVE
        assert "cannot be used" in later.reason


@pytest.mark.parametrize("broken", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("among", [0, 5])
def test_a_latency_that_is_no_time_spoils_the_rest(broken, among):
    test = SequentialPercentile(**P95)
    assert test.update([1.0] * among + [broken]).outcome is Outcome.INCONCLUSIVE
    later = test.update([0.1] * 100_000)
    assert later.outcome is Outcome.INCONCLUSIVE
    assert "not a time" in later.reason


@pytest.mark.parametrize("batch", [(2, 1), (-1, 10), (0, -1), (0.5, 10), (0, 10.5)])
def test_impossible_counts_are_refused(batch):
    with pytest.raises(ValueError, match="not a count"):
        SequentialRate(**CLAIM).update(*batch)


@pytest.mark.parametrize("censored", [-1, 0.5, math.nan])
def test_an_impossible_number_of_unanswered_requests_is_refused(censored):
    with pytest.raises(ValueError, match="censored"):
        SequentialPercentile(**P95).update([1.0], censored=censored)


@pytest.mark.parametrize(
    "claim",
    [{"limit": limit} for limit in (0, -0.1, 1.1, math.nan)]
    + [{"confidence": confidence} for confidence in (0.5, 1, 95, math.nan)]
    + [{"good": 0.05}, {"good": 0}, {"bad": 0.05}, {"bad": 1}]
    + [{"burst": burst} for burst in (0, 1.5, math.nan, math.inf)],
)
def test_senseless_claims_are_refused(claim):
    with pytest.raises(ValueError, match="must"):
        SequentialRate(**(CLAIM | claim))


@pytest.mark.parametrize(
    "claim",
    [{"percentile": percentile} for percentile in (0, 100, math.nan)]
    + [{"limit_seconds": seconds} for seconds in (0, -1, math.inf, math.nan)],
)
def test_senseless_percentiles_are_refused(claim):
    with pytest.raises(ValueError, match="must"):
        SequentialPercentile(**(P95 | claim))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), max_size=12),
    st.sampled_from([1, 10]),
)
def test_one_failure_more_never_betters_a_verdict(batches, burst):
    better, worse = SequentialRate(**CLAIM, burst=burst), SequentialRate(**CLAIM, burst=burst)
    for total, part in batches:
        failures = math.floor(part * total)
        first = better.update(failures, total)
        second = worse.update(min(failures + 1, total), total)
        if Outcome.INCONCLUSIVE in (first.outcome, second.outcome):
            break  # from here on one may be final while the other goes on
        assert ORDER.index(second.outcome) >= ORDER.index(first.outcome)


@given(
    st.lists(st.sampled_from([0.5, 3.0, 4.0]), min_size=1, max_size=300), st.sampled_from([1, 10])
)
def test_a_percentile_is_a_rate_of_requests_at_the_limit_or_above(latencies, burst):
    one_by_one, at_once = (SequentialPercentile(**P95, burst=burst) for _ in range(2))
    rate = SequentialRate(**CLAIM, burst=burst)
    for latency in latencies:
        seen = one_by_one.update([latency])
        told = rate.update(int(latency >= 3.0), 1)
        if told.passed or 3.0 not in latencies:
            assert seen.outcome is told.outcome
        if seen.outcome is not Outcome.INCONCLUSIVE:
            break
    whole = at_once.update(np.array(latencies))
    assert whole.measured == sum(latency >= 3.0 for latency in latencies) / len(latencies)


def test_latencies_at_the_limit_itself_decide_nothing():
    verdict = SequentialPercentile(**P95).update([3.0] * 5000)
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_a_percentile_is_asked_of_the_decimal_that_was_written():
    # 1 - 0.95 is above 0.05 in binary: the limit of the share must not be.
    assert SequentialPercentile(**P95).update([1.0]).limit == 0.05
    assert SequentialPercentile(**(P95 | {"percentile": 99.9})).update([1.0]).limit == 0.001


def test_unanswered_requests_are_late_ones():
    verdict = SequentialPercentile(**P95).update([1.0] * 500, censored=500)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.measured == 0.5
    assert verdict.n == 1000


def test_a_pass_waits_for_the_stalls_that_may_come():
    told, untold = SequentialPercentile(**P95), SequentialPercentile(**P95, burst=1)
    assert untold.update([1.0] * 100).passed
    verdict = told.update([1.0] * 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "up to 10 requests in a row may share one cause, so 10 of them" in verdict.reason
    assert told.update([1.0] * 700).passed


def test_bursts_longer_than_told_hold_a_verdict_back_and_it_says_so(monkeypatch):
    rng, held_back = np.random.default_rng(22), []
    for _ in range(30):
        bad = np.repeat(rng.random(300) < 0.03, 8)
        test = SequentialRate(**CLAIM, burst=2)
        verdicts = (test.update(int(late), 1) for late in bad)
        held_back += [
            (bad[: v.n], v) for v in verdicts if "they came in bursts" in v.reason and not v.passed
        ][:1]
    assert len(held_back) >= 5
    monkeypatch.setattr(BadRequests, "block_length", lambda self, n: 1)
    for bad, verdict in held_back:
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert rate_after(bad, burst=2).outcome is not Outcome.INCONCLUSIVE


def test_between_two_updates_the_figures_are_those_of_now():
    test = SequentialRate(**CLAIM)
    test.update(3, 100)
    verdict = test.update(1, 5)
    assert (verdict.n, verdict.measured) == (105, 4 / 105)
    assert verdict.reason.startswith("4 of 105 requests failed")
