"""Prometheus beside a watch: it is asked again and again, and never waited for."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.scraped_pods import Pod, merged, scripted
from support.scripted_prometheus import NOW, T

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.request_counts import ErrorRates, LatencyCounts, LiveCounts, RequestCounts
from vllm_rollout.observe import prometheus_window
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.observe.missing_servers import Newest
from vllm_rollout.observe.prometheus_window import LiveMetrics, live_metrics
from vllm_rollout.policy import load_policy

MINUTE = timedelta(minutes=1)
TEN_WELL = ProbeSample(total=10, failures=0, latencies_seconds=(0.1,) * 10, healthy=True)


class Scripted:
    """Metrics as `answer` says, at a time that goes on by 20 s from question to question."""

    def __init__(self, answer: Callable[[], int]) -> None:
        self.answer, self.asked, self.closed = answer, 0, threading.Event()
        self.windows: list[timedelta] = []

    def now(self) -> datetime:
        self.asked += 1
        return NOW + timedelta(seconds=20 * (self.asked - 1))

    def newest(self, now: datetime, window: timedelta) -> Newest:
        return Newest(at=now.timestamp())

    def error_rates(self, window: timedelta, *, end: datetime) -> ErrorRates:
        self.windows.append(window)
        return ErrorRates(sources=(RequestCounts(source="servers", total=self.answer()),))

    def latency(self, window: timedelta, *, end: datetime) -> LatencyCounts:
        return LatencyCounts(unknown="not scripted")

    def close(self) -> None:
        self.closed.set()


def next_answer(live: LiveMetrics) -> LiveCounts:
    deadline = time.monotonic() + 30
    while (answer := live.newest()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return answer


def test_windows_reach_back_no_further_than_the_watchs_own_beginning() -> None:
    metrics: Any = Scripted(lambda: 100)
    with LiveMetrics(metrics, MINUTE) as live:
        assert "no time has passed" in next_answer(live).unknown
        assert next_answer(live).rates.sources[0].total == 100
        while len(metrics.windows) < 5:
            next_answer(live)
        since = live.since_the_first()
    assert metrics.windows[:4] == [timedelta(seconds=s) for s in (20, 40, 60, 60)]
    assert metrics.windows[-1] > MINUTE
    assert since.rates.sources[0].total == 100
    assert metrics.closed.wait(30)


def test_a_question_that_hangs_holds_nobody_up_and_is_asked_once() -> None:
    go_on = threading.Event()

    def hangs() -> int:
        go_on.wait(60)
        return 7

    metrics: Any = Scripted(hangs)
    with LiveMetrics(metrics, MINUTE) as live:
        next_answer(live)
        while not metrics.windows:
            time.sleep(0.005)
        assert [live.newest() for _ in range(100)] == [None] * 100
        assert len(metrics.windows) == 1
    assert not metrics.closed.is_set()
    go_on.set()
    assert metrics.closed.wait(30)


def test_no_answer_is_nothing_known_and_ends_no_watch() -> None:
    def down() -> int:
        raise UnreachableError("Prometheus gave no answer", address="prometheus")

    with LiveMetrics(Scripted(down), MINUTE) as live:  # type: ignore[arg-type]
        next_answer(live)
        for answer in (next_answer(live), live.since_the_first()):
            assert answer.unknown.count("Prometheus gave no answer") == 1
            assert answer.rates.against(0.05) is None


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({}, None),
        ({"prometheus.url": "http://127.0.0.1:9", "prometheus.ca_file": "/dev/null"}, "CA file"),
    ],
    ids=["none", "unusable"],
)
def test_without_a_prometheus_nobody_is_asked_and_one_that_cannot_be_is_said(
    changes: dict[str, Any], unknown: str | None
) -> None:
    policy = load_policy(None, overrides=changes)
    with live_metrics(policy, Deployment("llama-2-7b", "production")) as live:
        for answer in (live.newest(), live.since_the_first()):
            assert (answer is None) if unknown is None else (unknown in answer.unknown)


@pytest.mark.parametrize("every", [15, 60])
def test_few_users_who_all_fail_are_not_hidden_by_the_watchs_probes(
    every: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten probes in five seconds, and a user in ten: all requests together fail to 4.8%."""
    now = [T - 960.0]
    monkeypatch.setattr(prometheus_window.time, "monotonic", lambda: now[0] - 1e9)

    def rates(failing: float) -> list[float | None]:
        """What the watch reads, of 2 probes and 0.1 users a second, over eight minutes."""
        pods = [
            Pod(f"10.0.0.{i}:8000", rate=2.1 / 4, bad=lambda ago: failing / 21) for i in range(4)
        ]
        world = merged(*(p.scraped(T, offset=i, every=every) for i, p in enumerate(pods)))
        rules = load_policy(None, overrides={"prometheus.url": "http://prometheus"}).prometheus
        deployment = Deployment("llama-2-7b", "production")
        metrics = DeploymentMetrics(scripted(lambda metric: world), rules, deployment)
        metrics.now = lambda: datetime.fromtimestamp(now[0], UTC)  # type: ignore[method-assign]
        live, found, now[0] = LiveMetrics(metrics, MINUTE), [], T - 960.0
        while now[0] < T - 480:
            live.seen(Observation(probes=TEN_WELL, replicas=None))
            found.append(live._counts(MINUTE).rates.against(0.05, fewest=10))
            now[0] += 5
        return found[int(4 * every / 5 + 12) :]

    assert all(rate is not None and rate > 0.1 for rate in rates(1.0))
    assert all(rate is not None and rate < 0.05 for rate in rates(0.02))
