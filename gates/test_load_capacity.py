"""Load test: the deployment handles expected production traffic."""

from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.capacity import capacity_verdict
from vllm_rollout.judge.headroom import KnownCapacity, with_headroom
from vllm_rollout.observe.load import LoadResult
from vllm_rollout.policy import Gates, Policy


def test_load_capacity(
    load: LoadResult,
    slo: Gates,
    policy: Policy,
    known_capacity: KnownCapacity | None,
    verdict: VerdictRecorder,
) -> None:
    expected = slo.load_capacity.expected_rate
    carried = capacity_verdict(
        unserved=load.failures,
        total=load.total,
        offered_per_second=load.offered_per_second,
        expected_per_second=expected,
        limit=slo.load_capacity.unserved,
        confidence=policy.confidence,
    )
    verdict(
        with_headroom(
            carried,
            known_capacity,
            expected_per_second=expected,
            offered_per_second=load.offered_per_second,
        )
    )
