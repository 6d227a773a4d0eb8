"""What users' counters decide, and what the load's own measurement decides in their place."""

import math
import re
from pathlib import Path

import pytest

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.live_slo import (
    decided_by_answer_times,
    decided_by_own_load,
    latency_verdict,
    undecided_limits,
)
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.model.request_counts import AnswerTimes, LatencyCounts
from vllm_rollout.policy import load_policy

DATA = Path(__file__).parents[1] / "data"


HTTP = "http_request_duration_highr_seconds"


def stock(histogram: str = "vllm:e2e_request_latency_seconds") -> list[float]:
    """The bounds of a real vLLM."""
    recorded = (DATA / "vllm-0.32.0/noauth/metrics_1_after.body").read_text()
    found = re.findall(rf'{histogram}_bucket\{{[^}}]*le="([^"]+)"', recorded)
    return sorted({float(bound) for bound in found})


def counted(*slow: tuple[float, int], total: int = 1000) -> LatencyCounts:
    """Buckets in which so many requests took so long, and the others no time."""
    late = sum(n for _, n in slow)
    return LatencyCounts(
        cumulative={
            bound: total - late + sum(n for seconds, n in slow if seconds <= bound)
            for bound in stock()
        }
    )


def own(seconds: float) -> Verdict:
    """A load of which one request in ten took so long."""
    latencies = [0.4] * 1800 + [seconds] * 200
    return percentile_verdict(latencies, percentile=95, limit_seconds=3, confidence=0.95)


def judged(users: LatencyCounts, load: float) -> Verdict:
    found = latency_verdict(users, percentile=95, limit_seconds=3, confidence=0.95)
    return decided_by_own_load(found, users, lambda: own(load))


@pytest.mark.parametrize(
    ("seconds", "load", "outcome"),
    [
        (2.7, 2.7, Outcome.PASS),  # the load is in the users' bucket, and finer
        (4.5, 4.5, Outcome.FAIL),
        (4.5, 0.4, Outcome.INCONCLUSIVE),  # what is slow are not requests like the load's
        (4.5, 7.0, Outcome.INCONCLUSIVE),
        (1.2, 7.0, Outcome.PASS),  # the buckets decide
        (7.0, 2.7, Outcome.FAIL),
    ],
)
def test_a_limit_inside_a_bucket_is_decided_by_the_loads_own_measurement(
    seconds: float, load: float, outcome: Outcome
) -> None:
    found = judged(counted((seconds, 100)), load)
    assert found.outcome is outcome, found.reason
    if outcome is not Outcome.INCONCLUSIVE and seconds in (2.7, 4.5):
        assert "as the buckets do not decide" in found.reason


def answers(slow: int, unsure: int, *, of: int = 1000, at: float = 3.5) -> AnswerTimes:
    """So many answers that took longer than 3 s, and so many that may be others' requests."""
    best, worst = (
        LatencyCounts(
            cumulative={
                bound: 0 if bound < at - 0.5 else of - n * (bound < at) for bound in stock(HTTP)
            }
        )
        for n in (slow, slow + unsure)
    )
    return AnswerTimes(at_best=best, at_worst=worst)


@pytest.mark.parametrize(
    ("times", "outcome", "words"),
    [
        (answers(10, 20), Outcome.PASS, "P95 is at most 3 s"),
        (answers(100, 500), Outcome.FAIL, "P95 is above 3 s"),
        (answers(10, 200), Outcome.INCONCLUSIVE, "nor do the times of answers over HTTP decide"),
        (answers(100, 0, at=7.5), Outcome.INCONCLUSIVE, "contradict them"),
        (
            AnswerTimes(
                at_best=LatencyCounts(unknown="no series"),
                at_worst=LatencyCounts(unknown="no series"),
            ),
            Outcome.INCONCLUSIVE,
            "no series",
        ),
    ],
    ids=["quick", "slow", "perhaps others'", "contradiction", "unknown"],
)
def test_answer_times_decide_whosever_the_slow_ones_are(
    times: AnswerTimes, outcome: Outcome, words: str
) -> None:
    users = counted((2.7, 100))
    found = latency_verdict(users, percentile=95, limit_seconds=3, confidence=0.95)
    found = decided_by_answer_times(found, users, lambda: times, percentile=95, confidence=0.95)
    assert found.outcome is outcome, found.reason
    assert words in found.reason


def test_too_few_users_are_not_decided_by_the_load() -> None:
    assert judged(counted((2.7, 2), total=10), 2.7).outcome is Outcome.INCONCLUSIVE
    none = LatencyCounts(unknown="no scrape")
    assert judged(none, 2.7).outcome is Outcome.INCONCLUSIVE


def test_the_default_limits_that_stock_buckets_cannot_decide_are_named() -> None:
    policy = load_policy(None)
    live, slo, trigger = undecided_limits(policy, "production", stock())
    assert live.startswith("live_metrics (P95): 3 s lies inside a bucket")
    assert "2.5 s and 5 s" in live
    assert slo.startswith("watch.slo (P95): 3 s")
    assert trigger.startswith("triggers.latency (P95): 6 s")
    assert "5 s and 10 s" in trigger
    # By the times of whole answers over HTTP the gate's limit is decided.
    slo, trigger = undecided_limits(policy, "production", stock(), stock(HTTP))
    assert slo.startswith("watch.slo (P95): 3 s")
    assert slo.endswith("the watch's own probes decide it")
    assert undecided_limits(policy, "production", []) == []
    assert undecided_limits(policy, "production", [1.0, 3.0, 6.0, math.inf]) == []
