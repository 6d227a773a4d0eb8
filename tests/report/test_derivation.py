"""How a verdict was reached, with its numbers put in: what an SRE checks by hand."""

import math
import re

import numpy as np
import pytest

from vllm_rollout.judge import Outcome, Verdict, check
from vllm_rollout.judge.alpha_spending import AlphaSpending, early_verdict
from vllm_rollout.judge.binomial import chance_above, chance_at_most
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.compare import compare_rate
from vllm_rollout.judge.multiple_testing import judge_family
from vllm_rollout.judge.ordered_verdicts import percentile_verdict_in_order, rate_verdict_in_order
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.response_time import every_sample_within
from vllm_rollout.judge.sequential import SequentialGoodput, SequentialPercentile, SequentialRate
from vllm_rollout.report.derivation import working

P95 = {"percentile": 95, "limit_seconds": 3.0, "confidence": 0.95}
RATE = {"limit": 0.01, "confidence": 0.95}
BURSTS = np.arange(8000) % 250 >= 240


def text(verdict: Verdict) -> str:
    return "\n".join(working(verdict))


def test_a_rate_shows_the_tail_sums_that_its_bounds_have():
    shown = text(rate_verdict(3, 1000, **RATE))
    assert "Measured: 3 of 1,000 = 0.3%." in shown
    upper = float(re.search(r"Upper bound ([\d.]+)%: .* P\(X <= 3\) = 5%", shown)[1]) / 100
    lower = float(re.search(r"Lower bound ([\d.]+)%: .* P\(X >= 3\) = 5%", shown)[1]) / 100
    assert chance_at_most(3, 1000, upper) == pytest.approx(0.05, rel=1e-4)
    assert chance_above(2, 1000, lower) == pytest.approx(0.05, rel=1e-4)
    assert (
        "Below 1% with both bounds: at most 4 of 1,000; above it with both: at least 16." in shown
    )
    assert shown.endswith("The upper bound 0.773524% is not above the limit 1%: pass.")


def test_a_percentile_shows_the_ranks_that_its_bounds_have():
    latencies = np.arange(1, 1001) / 400
    verdict = percentile_verdict(latencies, **P95)
    shown = text(verdict)
    assert "Measured: rank 950 of 1,000" in shown
    high = int(re.search(r"Upper bound: rank (\d+),", shown)[1])
    low = int(re.search(r"Lower bound: rank (\d+),", shown)[1])
    assert latencies[high - 1] == verdict.upper
    assert latencies[low - 1] == verdict.lower
    assert f"at most {1000 - high} take that long" in shown


def test_bursts_are_shown_as_what_they_are_worth():
    slow = np.where(BURSTS, 3.5, 0.5) + np.arange(8000) / 1e5
    verdict = percentile_verdict_in_order(slow, **P95)
    shown = text(verdict)
    block = int(re.search(r"Bursts: (\d+) requests in a row count as one", shown)[1])
    assert f"so 8,000 requests as {8000 // block} independent ones" in shown
    ordered = np.sort(slow)
    rank = int(re.search(r"Upper bound: rank ([\d,]+) \(of run", shown)[1].replace(",", ""))
    assert ordered[rank - 1] == verdict.upper
    rank = int(re.search(r"Lower bound: rank ([\d,]+) \(of run", shown)[1].replace(",", ""))
    assert ordered[rank - 1] == verdict.lower
    shares = text(rate_verdict_in_order(BURSTS, limit=0.05, confidence=0.95))
    assert "Clopper–Pearson, computed again here and found the same" in shares
    assert "Bursts: " in shares


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (rate_verdict(0, 0, **RATE), "no figure to compute with"),
        (check(True, "ready"), "no figure to compute with"),
        (every_sample_within([1.0, 2.0], limit_seconds=5.0, failed=0), "compared as they are"),
        (percentile_verdict([1.0] * 10, **P95), "Upper bound: none, as even rank 10"),
        (
            bucket_verdict({1.0: 90, 2.5: 100, math.inf: 100}, **P95),
            "2.5 s (the edge of its bucket)",
        ),
        (SequentialRate(**RATE).update(0, 2000), "a confidence sequence"),
        (
            compare_rate(3, 3000, 4, 3000, largest_difference=0.005, confidence=0.95),
            "do not follow from the measured value",
        ),
    ],
)
def test_every_kind_of_verdict_says_what_its_bounds_rest_on(verdict, said):
    assert said in text(verdict)


@pytest.mark.parametrize("burst", [1, 10])
def test_a_watched_fail_shows_the_e_value_that_decided_it(burst: int):
    spending = AlphaSpending(confidence=0.95, early=0.2, gates=3)
    confidences = {
        "confidence": spending.early_pass_confidence,
        "fail_confidence": spending.early_fail_confidence,
    }
    rate = SequentialRate(limit=0.01, burst=burst, **confidences)
    latency = SequentialPercentile(percentile=95, limit_seconds=3, burst=burst, **confidences)
    goodput = SequentialGoodput(target=0.9, limits="l", burst=burst, **confidences)
    for one_more in (
        lambda: rate.update(1, 1),
        lambda: latency.update([4.0]),
        lambda: goodput.update(False),
    ):
        while (verdict := one_more()).outcome is Outcome.INCONCLUSIVE:
            pass
        early = early_verdict(verdict, None, spending)
        shown = text(early)
        assert f"with {early.n} bad of {early.n}" in shown
        e_value = float(re.search(r"the e-value for a share above \S+ is ([\d.]+),", shown)[1])
        assert e_value >= 300, "5% times 20%, shared among three gates"
        assert f"{early.p_value:.4g} over the part of the risk" in shown
        assert early.p_value == pytest.approx(5 / e_value, rel=1e-4)


def test_a_watched_pass_shows_the_e_value_that_decided_it():
    shown = text(SequentialRate(**RATE).update(0, 600))
    assert "with 0 bad of 600, that is 0 of 600 runs, the e-value for a share below 1%" in shown


def test_a_fail_that_the_family_took_back_is_not_shown_as_the_bounds_have_it():
    doubtful = rate_verdict(16, 1000, **RATE)
    assert doubtful.outcome is Outcome.FAIL
    weakened, *_ = judge_family([doubtful] + [rate_verdict(0, 9000, **RATE)] * 9, confidence=0.95)
    assert "something weighs more than the bounds" in text(weakened)
