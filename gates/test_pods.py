"""Pods Running and Ready."""

from vllm_rollout.pytest_plugin.fixtures import Cluster
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.serving import pods_running_and_ready


def test_pods_running_and_ready(cluster: Cluster, verdict: VerdictRecorder) -> None:
    for found in pods_running_and_ready(cluster, verdict.attach):
        verdict(found)
