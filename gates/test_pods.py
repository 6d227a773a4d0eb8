"""Pods Running and Ready."""

from vllm_rollout.gating.fixtures import Cluster
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.replicas import replicas_verdict


def test_pods_running_and_ready(cluster: Cluster, verdict: VerdictRecorder) -> None:
    revision = cluster.revision()
    verdict(replicas_verdict(cluster.replicas(), expected=revision.capacity if revision else None))
