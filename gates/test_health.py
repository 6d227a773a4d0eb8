"""Health endpoint returns 200, and the engine behind it gives a token.

A hung engine may answer /health with 200, so the status alone is no proof of life.
"""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge import check
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates


def test_health_200_and_a_token(
    client: InferenceClient, slo: Gates, verdict: VerdictRecorder
) -> None:
    timeout = slo.health.timeout_seconds
    health = client.health(timeout_seconds=timeout)
    verdict(
        check(
            health.status == 200,
            f"/health answered {health.status or health.error}",
            remedy="Look at the replica's log: vllm-rollout logs MODEL --environment ENVIRONMENT.",
        )
    )
    token = client.complete("Hello", max_tokens=1, timeout_seconds=timeout)
    verdict(
        check(
            token.ok,
            f"one token came in {token.seconds:.3g} s"
            if token.ok
            else f"/health says 200 and no token comes: {token.error or token.outcome}",
            remedy="The engine hangs behind a healthy front: restart the replica and read its log.",
        )
    )
