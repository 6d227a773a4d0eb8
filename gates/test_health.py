"""Health endpoint returns 200, and the engine behind it gives a token: each ready replica's.

A hung engine may answer /health with 200, so the status alone is no proof of life.
"""

from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import Servers, health_and_a_token


def test_health_200_and_a_token(servers: Servers, slo: Gates, verdict: VerdictRecorder) -> None:
    for found in health_and_a_token(servers, slo.health):
        verdict(found)
