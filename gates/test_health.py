"""Health endpoint returns 200, and the engine behind it gives a token.

A hung engine may answer /health with 200, so the status alone is no proof of life.
"""

from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import health_and_a_token


def test_health_200_and_a_token(
    client: InferenceClient, slo: Gates, verdict: VerdictRecorder
) -> None:
    for found in health_and_a_token(client, slo.health):
        verdict(found)
