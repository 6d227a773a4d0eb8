"""Requests waiting: at each reading fewer than the limit."""

from collections.abc import Sequence

from vllm_rollout.judge.resources import resource_verdict
from vllm_rollout.model.live_figures import FigureName
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.policy import Gates, Policy
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder


def test_queue(
    readings: Sequence[FiguresRead], slo: Gates, policy: Policy, verdict: VerdictRecorder
) -> None:
    limit, longest = slo.queue.limit, policy.triggers.max_gap
    verdict(resource_verdict(FigureName.QUEUE, readings, limit=limit, longest=longest))
