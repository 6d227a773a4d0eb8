"""Load test: the deployment handles expected production traffic."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.capacity import capacity_verdict
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_load_capacity(
    load: LoadResult, slo: Gates, policy: Policy, verdict: VerdictRecorder
) -> None:
    verdict(
        capacity_verdict(
            unserved=load.failures,
            total=load.total,
            offered_per_second=load.offered_per_second,
            expected_per_second=slo.load_capacity.expected_rate,
            limit=slo.load_capacity.unserved,
            confidence=policy.confidence,
        )
    )
