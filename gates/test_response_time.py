"""Response time: every sample request answers within the limit (workflow: "< 5s")."""

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.replicas import cached_verdict
from vllm_rollout.judge.response_time import every_sample_within
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import unanswered


def test_response_time(
    client: InferenceClient, deployment: Deployment, slo: Gates, verdict: VerdictRecorder
) -> None:
    sample, gate = slo.inference, slo.response_time
    answers = [
        client.ask(
            sample.prompt, max_tokens=sample.max_tokens, timeout_seconds=sample.timeout_seconds
        )
        for _ in range(gate.requests)
    ]
    failed = [answer for answer in answers if not answer.ok]
    figures = {"limit_seconds": gate.limit_seconds, "failed": len(failed)}
    if failed:
        why = unanswered(client, deployment.model, failed[0])
        if why.outcome is not Outcome.FAIL:
            verdict(why)
        figures |= {"error": why.reason, "remedy": why.remedy}
    if cached := next((a.cached for a in answers if a.ok and a.cached), ""):
        verdict(cached_verdict(cached))
    verdict(every_sample_within([a.seconds for a in answers if a.ok], **figures))
