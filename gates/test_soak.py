"""Soak: the revision has been unchanged and healthy for as long as the policy says."""

from datetime import UTC, datetime

from vllm_rollout.judge import check
from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.policy import Policy
from vllm_rollout.pytest_plugin.fixtures import Cluster
from vllm_rollout.pytest_plugin.verdict_recorder import VerdictRecorder
from vllm_rollout.rollout.soak_samples import judge_soak


def test_soak(
    cluster: Cluster, deployment: Deployment, policy: Policy, verdict: VerdictRecorder
) -> None:
    revision = newest_served(cluster.platform.history(deployment))
    if revision is None:
        verdict(check(None, "nothing is deployed", remedy="Deploy it; then its soak begins."))
    else:
        now = datetime.now(UTC)
        verdict(judge_soak(cluster.platform, policy, deployment, revision, now))
