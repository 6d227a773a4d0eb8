"""A watched load: two occasions for a verdict, and together no more risk than one has."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from support.stopping import spend_at

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.alpha_spending import (
    AlphaSpending,
    RepeatedGates,
    early_verdict,
    last_verdict,
    stopped_verdict,
)
from vllm_rollout.judge.multiple_testing import judge_family
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.sequential import SequentialGoodput, SequentialRate

LIMIT = 0.05
FAILS = AlphaSpending(confidence=0.95, early=0.2)
BOTH = replace(FAILS, passes=True)
UNKNOWN = Verdict(outcome=Outcome.INCONCLUSIVE, reason="too few", confidence=0.99)


def requests_told(bad: list[bool], spending: AlphaSpending = FAILS) -> Verdict:
    """What a test of these requests says."""
    test = SequentialRate(
        limit=LIMIT,
        confidence=spending.early_pass_confidence,
        fail_confidence=spending.early_fail_confidence,
    )
    verdict = test.update(0, 0)
    for each in bad:
        verdict = test.update(int(each), 1)
    return verdict


def at_the_end(
    early: Verdict, failures: int, total: int, spending: AlphaSpending = FAILS
) -> Verdict:
    return last_verdict(
        early,
        lambda confidence: rate_verdict(failures, total, limit=LIMIT, confidence=confidence),
        spending,
    )


@pytest.mark.parametrize("spending", [FAILS, BOTH], ids=["fails", "both"])
@pytest.mark.parametrize("horizon", [120, 400])
def test_both_occasions_together_are_wrong_no_more_often_than_one_may_be(
    spending: AlphaSpending, horizon: int
) -> None:
    """Summed over all paths, at the limit, where both mistakes are most likely."""
    ends = spend_at(LIMIT, spending, share=LIMIT, horizon=horizon)
    assert ends.passed <= 0.05
    assert ends.failed <= 0.05


def wrong(confidences: Sequence[float], sizes: Sequence[int], *, passes: bool) -> float:
    """The exact chance that some ask passes, or fails, a service at the limit.

    Each ask is of all requests so far; the first that decides is the last.
    """
    open_ = np.ones(1)
    asked, decided = 0, 0.0
    for confidence, size in zip(confidences, sizes, strict=True):
        k = np.arange(size - asked + 1)
        open_ = np.convolve(open_, binom.pmf(k, size - asked, LIMIT))
        verdicts = [
            rate_verdict(bad, size, limit=LIMIT, confidence=confidence).outcome
            for bad in range(size + 1)
        ]
        outcome = Outcome.PASS if passes else Outcome.FAIL
        decided += sum(open_[[found is outcome for found in verdicts]])
        open_ *= [found is Outcome.INCONCLUSIVE for found in verdicts]
        asked = size
    return decided


@pytest.mark.parametrize("passes", [True, False])
def test_gates_that_are_asked_again_share_the_risk_of_one(passes: bool) -> None:
    """Every minute for ten minutes, of more requests each time; and of few at first."""
    risk = RepeatedGates(confidence=0.95, more=10)
    assert risk.first == pytest.approx(0.955)
    assert risk.again == pytest.approx(0.9995)
    for sizes in (range(300, 411, 11), range(60, 501, 44)):
        at_full_risk = wrong([0.95] * 11, sizes, passes=passes)
        shared = wrong([risk.first, *[risk.again] * 10], sizes, passes=passes)
        assert shared <= 0.05
        assert at_full_risk > 0.05
    once = RepeatedGates(confidence=0.95, more=0)
    assert once.first == once.again == 0.95


def test_watching_for_fails_costs_a_good_build_nothing() -> None:
    """The passes are those of the fixed sample, but for the good builds that were stopped."""
    horizon, good = 400, 0.02
    watched = spend_at(LIMIT, FAILS, share=good, horizon=horizon)
    allowed = max(
        k for k in range(50) if rate_verdict(k, horizon, limit=LIMIT, confidence=0.95).passed
    )
    fixed = sum(
        math.comb(horizon, k) * good**k * (1 - good) ** (horizon - k) for k in range(allowed + 1)
    )
    assert watched.passed == pytest.approx(fixed, abs=1e-4)
    assert watched.requests > 0.999 * horizon


def test_a_bad_build_is_stopped_long_before_the_end() -> None:
    ends = spend_at(LIMIT, FAILS, share=0.5, horizon=400)
    assert ends.failed > 0.999
    assert ends.requests < 20


@pytest.mark.parametrize("spending", [FAILS, BOTH])
def test_the_parts_of_the_risk_add_up_to_the_whole(spending: AlphaSpending) -> None:
    assert math.isclose(
        (1 - spending.early_fail_confidence) + (1 - spending.last_fail_confidence), 0.05
    )
    passes = 1 - spending.last_pass_confidence
    passes += 1 - spending.early_pass_confidence if spending.passes else 0
    assert math.isclose(passes, 0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"early": 0}, {"early": 1}, {"early": math.nan}, {"confidence": 0.5}, {"gates": 0}],
)
def test_a_risk_that_cannot_be_spent_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|at least"):
        AlphaSpending(**({"confidence": 0.95, "early": 0.2} | wrong))  # type: ignore[arg-type]


@given(st.lists(st.booleans(), max_size=200), st.booleans())
def test_a_stopped_load_shows_nothing_but_what_was_decided(bad: list[bool], both: bool) -> None:
    spending = BOTH if both else FAILS
    test = requests_told(bad, spending)
    early = early_verdict(test, test if both else None, spending)
    shown = stopped_verdict(early, "another gate had failed")
    assert shown.outcome is early.outcome
    if early.outcome is Outcome.INCONCLUSIVE:
        assert "not decided when the load was stopped (another gate had failed)" in shown.reason
        assert shown.remedy
    assert both or shown.outcome is not Outcome.PASS


def test_without_passes_a_test_that_passed_says_nothing_before_the_end() -> None:
    test = requests_told([False] * 500)
    assert test.passed
    assert early_verdict(test, None, FAILS).outcome is Outcome.INCONCLUSIVE
    assert early_verdict(UNKNOWN, test, BOTH).passed


def test_what_was_decided_before_the_end_is_what_is_said_at_the_end() -> None:
    early = early_verdict(requests_told([True] * 20), None, FAILS)
    assert early.outcome is Outcome.FAIL
    assert at_the_end(early, failures=0, total=9_000) is early


def test_a_fail_at_the_end_has_to_be_surer_and_a_pass_has_not() -> None:
    """Of 400, 28 are 95.5% sure to be too many: enough for the whole risk, not for its rest."""
    plain = rate_verdict(28, 400, limit=LIMIT, confidence=0.95)
    assert plain.outcome is Outcome.FAIL
    watched = at_the_end(UNKNOWN, 28, 400)
    assert watched.outcome is Outcome.INCONCLUSIVE
    assert watched.confidence == FAILS.last_fail_confidence
    surer = at_the_end(UNKNOWN, 33, 400)
    assert surer.outcome is Outcome.FAIL
    assert surer.p_value == pytest.approx(
        rate_verdict(33, 400, limit=LIMIT, confidence=0.95).p_value / 0.8  # type: ignore[operator]
    )
    assert at_the_end(UNKNOWN, 0, 60).passed
    assert not at_the_end(UNKNOWN, 0, 60, BOTH).passed


@pytest.mark.parametrize("gates", [1, 4])
@pytest.mark.parametrize("method", ["holm", "bonferroni", "none"])
def test_a_fail_before_the_end_stands_among_all_gates(gates: int, method: str) -> None:
    spending = AlphaSpending(confidence=0.95, early=0.2, gates=gates, method=method)  # type: ignore[arg-type]
    bad: list[bool] = []
    while (test := requests_told(bad, spending)).outcome is not Outcome.FAIL:
        bad.append(True)
    early = early_verdict(test, None, spending)
    others = [replace(UNKNOWN, reason=str(number)) for number in range(gates - 1)]
    judged, *_ = judge_family([early, *others], confidence=0.95, method=method)  # type: ignore[arg-type]
    assert judged.outcome is Outcome.FAIL


def test_nothing_at_all_is_never_decided() -> None:
    early = early_verdict(requests_told([]), requests_told([], BOTH), BOTH)
    assert early.outcome is Outcome.INCONCLUSIVE
    assert at_the_end(early, 0, 0).outcome is Outcome.INCONCLUSIVE


def test_goodput_is_the_share_that_misses_turned_round() -> None:
    confidences = {"confidence": 0.99, "fail_confidence": 0.99}
    goodput = SequentialGoodput(target=0.95, limits="first token below 1 s", **confidences)
    misses = SequentialRate(limit=0.05, **confidences)
    for number in range(300):
        met = number % 3 != 0
        of_good, of_bad = goodput.update(met), misses.update(int(not met), 1)
        assert of_good.outcome is of_bad.outcome
        assert (of_good.lower, of_good.upper) == (1 - of_bad.upper, 1 - of_bad.lower)  # type: ignore[operator]
    assert of_good.outcome is Outcome.FAIL
    assert of_good.limit == 0.95
    assert "missed a limit (first token below 1 s)" in of_good.reason
    with pytest.raises(ValueError, match="target"):
        SequentialGoodput(target=1, limits="", **confidences)
