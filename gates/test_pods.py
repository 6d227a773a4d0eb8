"""Pods Running and Ready."""

from vllm_rollout.gating.fixtures import Cluster
from vllm_rollout.gating.verdicts import VerdictRecorder
from vllm_rollout.judge.replicas import replicas_verdict


def test_pods_running_and_ready(cluster: Cluster, verdict: VerdictRecorder) -> None:
    revision, replicas = cluster.revision(), cluster.replicas()
    found = () if replicas and all(replica.ready for replica in replicas) else cluster.findings()
    for finding in found:
        verdict.attach(f"{finding.replica}: {finding.cause}", finding.text)
    expected = revision.capacity if revision else None
    verdict(replicas_verdict(replicas, expected=expected, findings=found))
