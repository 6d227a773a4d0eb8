"""Smoke test: production answers through its router, with a bearer key where it asks for one."""

from collections.abc import Iterator

import pytest

from vllm_rollout.judge import check
from vllm_rollout.judge.replicas import cached_verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import no_word_on_the_build
from vllm_rollout.settings import Settings


@pytest.fixture
def router(settings: Settings, deployment: Deployment, slo: Gates) -> Iterator[InferenceClient]:
    """A client of the users' address: the router's URL, or where the platform routes."""
    url = slo.smoke.url or settings.url_of(deployment)
    with settings.client(url, deployment, fresh=True) as client:
        yield client


def test_smoke(
    router: InferenceClient, settings: Settings, slo: Gates, verdict: VerdictRecorder
) -> None:
    key = settings.policy.api_key_env
    gate = slo.smoke
    result = router.ask(
        gate.prompt, max_tokens=gate.max_tokens, timeout_seconds=gate.timeout_seconds
    )
    verdict.attach("answer", result.answer.text if result.answer else result.error)
    if refused := no_word_on_the_build(router, result.status, result.error):
        verdict(refused)
    if result.answer and result.cached:
        verdict(cached_verdict(result.cached))
    verdict(
        check(
            result.ok,
            f"{router.base_url} answered with {result.answer.completion_tokens} tokens, "
            f"{f'by the key in {key}' if settings.api_key else 'without a key'}"
            if result.answer
            else f"{router.base_url} gave no valid answer "
            f"(HTTP {result.status}, {result.outcome}): {result.error}",
            remedy="See the router's log.",
        )
    )
