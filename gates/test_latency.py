"""P95 latency: 95 of 100 requests answer within the limit (workflow: "Response time < 3s P95")."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.dependence import percentile_verdict_in_order
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_p95_latency(
    load: LoadResult, slo: Gates, policy: Policy, verdict: VerdictRecorder
) -> None:
    verdict(
        percentile_verdict_in_order(
            load.latencies_in_order,
            percentile=slo.latency.percentile,
            limit_seconds=slo.latency.limit_seconds,
            confidence=policy.confidence,
            rate_per_second=load.plan.mean_rate_per_second,
        )
    )
