"""Verdicts that claim no statistics, and the precondition of capacity."""

import math

import pytest

from vllm_rollout.judge import Outcome, check, worst
from vllm_rollout.judge.load_capacity import capacity_verdict
from vllm_rollout.judge.replicas import replicas_verdict
from vllm_rollout.judge.response_time import every_sample_within
from vllm_rollout.model.deployment import Replica


def replica(name: str = "r0", **changes: object) -> Replica:
    known = {"phase": "Running", "ready": True, "restarts": 0}
    return Replica(name=name, **{**known, **changes})  # type: ignore[arg-type]


def test_the_worst_of_nothing_is_inconclusive() -> None:
    assert worst([]) is Outcome.INCONCLUSIVE
    assert worst([Outcome.PASS, Outcome.INCONCLUSIVE]) is Outcome.INCONCLUSIVE
    assert worst([Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]) is Outcome.FAIL
    assert worst([Outcome.PASS]) is Outcome.PASS


def test_an_unknown_fact_is_inconclusive_and_only_a_true_one_passes() -> None:
    assert check(None, "nobody knows").outcome is Outcome.INCONCLUSIVE
    assert check(False, "no").outcome is Outcome.FAIL
    assert check(True, "yes", remedy="unused").remedy == ""


@pytest.mark.parametrize(
    ("replicas", "expected", "outcome", "words"),
    [
        ([replica("a"), replica("b")], 2, Outcome.PASS, "2 of 2"),
        ([replica("a")], 2, Outcome.FAIL, "1 of 2"),
        ([], 1, Outcome.FAIL, "0 of 1"),
        ([], 0, Outcome.FAIL, "0 of 0"),
        ([replica()], None, Outcome.INCONCLUSIVE, "does not exist"),
        (
            [replica("a"), replica("b", ready=False, restarts=4, reason="CrashLoopBackOff")],
            1,
            Outcome.FAIL,
            "b is Running but not ready (CrashLoopBackOff) after 4 restarts",
        ),
        ([replica(phase="Pending")], 1, Outcome.FAIL, "r0 is Pending"),
    ],
)
def test_replicas_pass_only_when_all_are_there_and_ready(
    replicas: list[Replica], expected: int | None, outcome: Outcome, words: str
) -> None:
    verdict = replicas_verdict(replicas, expected=expected)

    assert verdict.outcome is outcome
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("seconds", "failed", "outcome"),
    [
        ([0.1, 4.9], 0, Outcome.PASS),
        ([0.1, 5.0], 0, Outcome.FAIL),
        ([0.1], 1, Outcome.FAIL),
        ([], 3, Outcome.FAIL),
        ([], 0, Outcome.INCONCLUSIVE),
        ([math.nan, 0.1], 0, Outcome.INCONCLUSIVE),
        ([math.inf], 0, Outcome.INCONCLUSIVE),
    ],
)
def test_samples_pass_only_when_every_one_was_answered_in_time(
    seconds: list[float], failed: int, outcome: Outcome
) -> None:
    assert every_sample_within(seconds, limit_seconds=5, failed=failed).outcome is outcome


def test_more_gpus_are_advised_only_where_samples_were_slow() -> None:
    slow = every_sample_within([0.1, 9.0], limit_seconds=5)
    assert "GPUs" in slow.remedy
    refused = every_sample_within([], limit_seconds=5, failed=2, error="404", remedy="Correct it.")
    assert refused.remedy == "Correct it."
    assert refused.reason == "2 of 2 sample requests were not answered: 404"


@pytest.mark.parametrize(
    ("offered", "unserved", "outcome"),
    [
        (10.0, 0, Outcome.PASS),
        (9.9, 0, Outcome.PASS),  # a Poisson process reaches its rate only on average
        (8.0, 0, Outcome.INCONCLUSIVE),  # well served, and not what was asked
        (0.0, 0, Outcome.INCONCLUSIVE),
        (math.nan, 0, Outcome.INCONCLUSIVE),
        (10.0, 600, Outcome.FAIL),
        (8.0, 600, Outcome.INCONCLUSIVE),
    ],
)
def test_capacity_is_judged_only_at_the_expected_rate(
    offered: float, unserved: int, outcome: Outcome
) -> None:
    verdict = capacity_verdict(
        unserved=unserved,
        total=6000,
        offered_per_second=offered,
        expected_per_second=10.0,
        limit=0.01,
        confidence=0.95,
    )

    assert verdict.outcome is outcome
