"""Metrics within SLO: the requests that Prometheus saw kept the limits."""

from datetime import UTC, datetime, timedelta

import pytest

from vllm_rollout.deployment import Deployment, newest_served
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge import check
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.judge.rate import rate_verdict_between
from vllm_rollout.observe.metrics import DeploymentMetrics
from vllm_rollout.policy import Gates, Policy
from vllm_rollout.settings import Settings

_REMEDY = "See that Prometheus scrapes the deployment; its labels are `prometheus.labels`."


@pytest.fixture
def window(settings: Settings, deployment: Deployment, slo: Gates) -> tuple[timedelta, datetime]:
    """How far back from which moment: never to before the revision under test was there."""
    now = datetime.now(UTC)
    history = settings.platform.history(deployment) if settings.platform else []
    serving = newest_served(history)
    age = now - serving.created if serving else slo.live_metrics.window
    return min(slo.live_metrics.window, age), now


def test_live_error_rate(
    metrics: DeploymentMetrics,
    window: tuple[timedelta, datetime],
    slo: Gates,
    policy: Policy,
    verdict: VerdictRecorder,
) -> None:
    """Error rate of users' requests, by Prometheus."""
    for counted in metrics.error_rates(window[0], end=window[1]).sources:
        if counted.unknown:
            verdict(check(None, f"{counted.source}: {counted.unknown}", remedy=_REMEDY))
        verdict(
            rate_verdict_between(
                counted.failures,
                counted.failures_at_most,
                counted.total,
                limit=slo.live_metrics.error_rate,
                confidence=policy.confidence,
            )
        )


def test_live_latency(
    metrics: DeploymentMetrics,
    window: tuple[timedelta, datetime],
    slo: Gates,
    policy: Policy,
    verdict: VerdictRecorder,
) -> None:
    """Latency of users' requests, by the buckets that Prometheus has of it."""
    counted = metrics.latency(window[0], end=window[1])
    if counted.unknown:
        verdict(check(None, counted.unknown, remedy=_REMEDY))
    verdict(
        bucket_verdict(
            counted.cumulative,
            percentile=slo.live_metrics.percentile,
            limit_seconds=slo.live_metrics.limit_seconds,
            confidence=policy.confidence,
            resets=counted.resets,
        )
    )
