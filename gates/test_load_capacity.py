"""Load test: the deployment handles expected production traffic."""

from vllm_rollout.capacity.headroom import KnownCapacity, with_headroom
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.policy import Gates
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.load_questions import CapacityQuestion
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_load_capacity(
    judged_load: JudgedLoad,
    slo: Gates,
    known_capacity: KnownCapacity | None,
    deployment: Deployment,
    verdict: VerdictRecorder,
) -> None:
    verdict(
        with_headroom(
            judged_load.verdict(CapacityQuestion(slo.load_capacity)),
            known_capacity,
            deployment=deployment,
            expected_per_second=slo.load_capacity.expected_rate,
            offered_per_second=judged_load.result.offered_per_second,
        )
    )
