"""Metrics within SLO: the requests that Prometheus saw kept the limits."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from vllm_rollout.judge.live_slo import (
    decided_by_answer_times,
    decided_by_own_load,
    error_rate_verdicts,
    latency_verdict,
)
from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.policy import Gates, Latency, Policy
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.settings import Settings


@pytest.fixture
def window(
    metrics: DeploymentMetrics, settings: Settings, deployment: Deployment, slo: Gates
) -> tuple[timedelta, datetime]:
    """Window of the gate, by Prometheus' clock; not from before the revision under test."""
    now = metrics.now()
    history = settings.platform.history(deployment) if settings.platform else []
    serving = newest_served(history)
    age = now - serving.created if serving else slo.live_metrics.window
    return max(min(slo.live_metrics.window, age), timedelta(seconds=1)), now


def test_live_error_rate(
    metrics: DeploymentMetrics,
    window: tuple[timedelta, datetime],
    slo: Gates,
    policy: Policy,
    verdict: VerdictRecorder,
) -> None:
    """Error rate of users' requests, by Prometheus."""
    rates = metrics.error_rates(window[0], end=window[1])
    for found in error_rate_verdicts(
        rates.sources, limit=slo.live_metrics.error_rate, confidence=policy.confidence
    ):
        verdict(found)


def test_live_latency(
    metrics: DeploymentMetrics,
    window: tuple[timedelta, datetime],
    slo: Gates,
    policy: Policy,
    own_latency: Callable[[Latency], Verdict | None],
    verdict: VerdictRecorder,
) -> None:
    """Latency of users' requests, by the buckets that Prometheus has of it."""
    live = slo.live_metrics
    counted = metrics.latency(window[0], end=window[1])
    found = latency_verdict(
        counted,
        percentile=live.percentile,
        limit_seconds=live.limit_seconds,
        confidence=policy.confidence,
    )
    found = decided_by_answer_times(
        found,
        counted,
        lambda: metrics.answer_times(window[0], end=window[1]),
        percentile=live.percentile,
        confidence=policy.confidence,
    )
    question = Latency(percentile=live.percentile, limit=live.limit)
    verdict(decided_by_own_load(found, counted, lambda: own_latency(question)))
