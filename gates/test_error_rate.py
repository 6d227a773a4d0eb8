"""Error rate: failures of every kind, by the client's own count (workflow: "< 0.1%")."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.dependence import rate_verdict_in_order
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_error_rate(load: LoadResult, slo: Gates, policy: Policy, verdict: VerdictRecorder) -> None:
    verdict.attach("failures by kind", str(load.failures_by_kind or "none"))
    verdict(
        rate_verdict_in_order(
            load.failed_in_order,
            limit=slo.error_rate.limit,
            confidence=policy.confidence,
            rate_per_second=load.plan.mean_rate_per_second,
        )
    )
