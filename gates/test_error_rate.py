"""Error rate: failures of every kind, by the client's own count (workflow: "< 0.1%")."""

from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_questions import ErrorRateQuestion
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_error_rate(judged_load: JudgedLoad, slo: Gates, verdict: VerdictRecorder) -> None:
    verdict.attach("failures by kind", str(judged_load.result.failures_by_kind or "none"))
    verdict(judged_load.verdict(ErrorRateQuestion(slo.error_rate)))
