"""What a capacity says of the expected traffic, and what the load gate may say of headroom."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vllm_rollout.capacity.headroom import NO_WORD, KnownCapacity, capacity_found, with_headroom
from vllm_rollout.capacity.model import Capacity, StopReason
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.verdict import Outcome, Verdict

FOUND = Capacity(
    ending=StopReason.FOUND, confidence=0.95, lower=38.0, upper=44.0, estimate=41.2, proved=40.0
)
KNOWN = KnownCapacity(
    lower=38.0,
    upper=44.0,
    confidence=0.95,
    found=datetime(2026, 11, 25, tzinfo=UTC),
    same_question=True,
)
PASSED = Verdict(outcome=Outcome.PASS, reason="at 10 requests/s: none failed")


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [(10, Outcome.PASS), (38, Outcome.PASS), (40, Outcome.INCONCLUSIVE), (45, Outcome.FAIL)],
)
def test_the_whole_interval_must_lie_on_one_side_of_the_expected_traffic(
    expected: float, outcome: Outcome
) -> None:
    verdict = capacity_found(FOUND, expected_per_second=expected, requests=9_000)
    assert verdict.outcome is outcome
    assert "41.2/s (38 – 44/s at 95%)" in verdict.reason


@pytest.mark.parametrize("ending", sorted(NO_WORD))
def test_a_search_that_was_disturbed_passes_nothing(ending: StopReason) -> None:
    verdict = capacity_found(replace(FOUND, ending=ending), expected_per_second=1, requests=9)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.remedy


def test_nothing_found_is_inconclusive_and_one_end_is_used_for_what_it_is() -> None:
    nothing = replace(FOUND, ending=StopReason.PROBES, lower=0.0, upper=math.inf, estimate=None)
    verdict = capacity_found(nothing, expected_per_second=10, requests=0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "not known" in verdict.reason
    least = capacity_found(replace(nothing, lower=38.0), expected_per_second=10, requests=9)
    assert least.outcome is Outcome.PASS
    assert "at least 38/s" in least.reason
    most = capacity_found(replace(nothing, upper=9.0), expected_per_second=10, requests=9)
    assert most.outcome is Outcome.FAIL


def headroom_of(verdict: Verdict, known: KnownCapacity | None, *, offered: float = 10.0) -> Verdict:
    return with_headroom(
        verdict,
        known,
        deployment=Deployment("m", "staging", "system"),
        expected_per_second=10,
        offered_per_second=offered,
    )


def headroom(known: KnownCapacity | None, *, offered: float = 10.0) -> str:
    verdict = headroom_of(PASSED, known, offered=offered)
    assert verdict.outcome is Outcome.PASS
    return verdict.reason.partition("; ")[2]


def test_headroom_is_that_of_the_capacity_on_record() -> None:
    assert headroom(KNOWN) == (
        "headroom: 3.8 – 4.4 × the expected traffic (capacity 38 – 44/s at 95%, found for this "
        "build on 2026-11-25)"
    )
    assert headroom(replace(KNOWN, upper=math.inf)).startswith("headroom: at least 3.8 ×")


def test_without_a_record_headroom_is_what_the_load_itself_showed_and_no_more() -> None:
    assert headroom(None, offered=10.1).startswith(
        "headroom over the expected traffic is not known"
    )
    assert headroom(None, offered=15.0).startswith("headroom: at least 1.5 × the expected traffic")
    assert headroom(None).endswith("it is found by: vllm-rollout capacity m -e staging")


def test_a_capacity_of_other_slos_or_of_nothing_is_not_used() -> None:
    for other in (replace(KNOWN, same_question=False), replace(KNOWN, lower=0.0)):
        assert "3.8" not in headroom(other)
    assert "other SLOs" in headroom(replace(KNOWN, same_question=False))


def test_a_verdict_that_is_no_pass_is_left_alone() -> None:
    failed = replace(PASSED, outcome=Outcome.FAIL)
    assert headroom_of(failed, KNOWN) == failed
