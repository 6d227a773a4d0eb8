"""Smoke test: production answers through its router, with a bearer key where it asks for one."""

from collections.abc import Iterator

import pytest

from vllm_rollout.judge import check
from vllm_rollout.judge.replicas import cached_verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.units import counted
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import unanswered
from vllm_rollout.settings import Settings


@pytest.fixture
def router(settings: Settings, deployment: Deployment, slo: Gates) -> Iterator[InferenceClient]:
    """A client of the users' address: the router's URL, or where the platform routes."""
    url = slo.smoke.url or settings.url_of(deployment)
    with settings.client(url, deployment, fresh=True) as client:
        yield client


def test_smoke(
    router: InferenceClient,
    settings: Settings,
    deployment: Deployment,
    slo: Gates,
    verdict: VerdictRecorder,
) -> None:
    key = settings.policy.api_key_env
    gate = slo.smoke
    result = router.ask(
        gate.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds
    )
    answer = result.answer
    verdict.attach("answer", answer.text if answer else result.error)
    if answer is None:
        verdict(unanswered(router, deployment.model, result))
    if result.cached:
        verdict(cached_verdict(result.cached))
    by = f"by the key in {key}" if settings.api_key else "without a key"
    tokens = counted(answer.completion_tokens, "token")
    verdict(check(True, f"{router.base_url} answered with {tokens}, {by}"))
