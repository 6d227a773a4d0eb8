"""P95 latency: 95 of 100 requests answer within the limit (workflow: "Response time < 3s P95")."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_p95_latency(
    load: LoadResult, slo: Gates, policy: Policy, verdict: VerdictRecorder
) -> None:
    verdict(
        percentile_verdict(
            load.latencies_seconds,
            percentile=slo.latency.percentile,
            limit_seconds=slo.latency.limit_seconds,
            confidence=policy.confidence,
            censored=load.censored,
            rate_per_second=load.plan.rate_per_second,
        )
    )
