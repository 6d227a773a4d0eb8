"""What users' counters decide, and what the load's own measurement decides in their place."""

import math
import re
from pathlib import Path

import pytest

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.live_slo import decided_by_own_load, latency_verdict, undecided_limits
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.model.request_counts import LatencyCounts
from vllm_rollout.policy import load_policy

DATA = Path(__file__).parents[1] / "data"


def stock() -> list[float]:
    """The bounds of a real vLLM."""
    recorded = (DATA / "vllm-0.32.0/noauth/metrics_1_after.body").read_text()
    found = re.findall(r'vllm:e2e_request_latency_seconds_bucket\{[^}]*le="([^"]+)"', recorded)
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
    assert undecided_limits(policy, "production", []) == []
    assert undecided_limits(policy, "production", [1.0, 3.0, 6.0, math.inf]) == []
