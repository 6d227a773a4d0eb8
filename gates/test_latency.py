"""P95 latency: 95 of 100 requests answer within the limit (workflow: "Response time < 3s P95")."""

from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_questions import LatencyQuestion
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_p95_latency(judged_load: JudgedLoad, slo: Gates, verdict: VerdictRecorder) -> None:
    verdict(judged_load.verdict(LatencyQuestion(slo.latency)))
