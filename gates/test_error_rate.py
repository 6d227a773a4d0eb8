"""Error rate: failures of every kind, by the client's own count (workflow: "< 0.1%")."""

from vllm_rollout.gating.load_questions import ErrorRateQuestion
from vllm_rollout.gating.load_watch import JudgedLoad
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.policy import Gates


def test_error_rate(judged_load: JudgedLoad, slo: Gates, verdict: VerdictRecorder) -> None:
    verdict.attach("failures by kind", str(judged_load.result.failures_by_kind or "none"))
    verdict(judged_load.verdict(ErrorRateQuestion(slo.error_rate)))
