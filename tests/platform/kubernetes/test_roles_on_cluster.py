"""The suite with each Role of the chart rollout-roles, on a real API server with RBAC."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cluster.behaviour import HEALTHY
from cluster.fixtures import Namespace
from cluster.required import each_helm
from cluster.roles import MODEL, As, enforced

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.preflight_checks import admission_verdict
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.model_status import model_status, models_known

LONG = timedelta(seconds=60)


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


def apply(platform: KubernetesPlatform, deployment: Deployment, version: str, replicas: int) -> Any:
    values = {"model": {"name": MODEL, "revision": version}}
    build = platform.build(deployment, values)
    target = Target(build=build, values=values, replicas=replicas, capacity=2)
    return platform.apply(deployment, target, description=version, timeout=LONG)


@each_helm
def test_promote_may_do_all_that_a_rollout_takes(
    acting_as: As, production: Deployment, namespace: Namespace
) -> None:
    enforced(namespace)
    platform = acting_as("promote")
    first = apply(platform, production, "one", 2)
    values = {"model": {"name": MODEL, "revision": "two"}}
    ramp = platform.preflight(production, values, capacity=2, steps=(1, 2))
    assert admission_verdict(ramp.admission()).passed
    secrets = ramp.new_objects().counts["count/secrets"]
    apply(platform, production, "two", 1)
    apply(platform, production, "two", 2)
    assert secrets == len(platform.history(production)) - 1 + 2  # of the way back
    platform.rollback(production, first.number, description="back", timeout=LONG)
    version = platform.store.write("capacity/a", {}, expect=None)
    platform.store.write("capacity/a", {}, expect=version)
    assert platform.store.keys("capacity/") == ["capacity/a"]
    platform.store.acquire(MODEL, "us", ttl=LONG)
    platform.store.release(MODEL, "us")
    assert platform.recover(production, timeout=LONG) == ""
    platform.uninstall(production, timeout=LONG)


def test_gate_reads_and_changes_nothing(acting_as: As, production: Deployment) -> None:
    apply(acting_as("admin"), production, "one", 2)
    platform = acting_as("gate")
    assert len(platform.history(production)) == 1
    assert len(platform.replicas(production)) == 2
    assert "==>" in platform.logs(production)
    # The right is there, and this cluster has no metrics-server.
    assert "install metrics-server" in platform.usage(production).unknown
    assert len(platform.symptoms(production)) == 2
    assert platform.running_differences(production) == []
    preflight = platform.preflight(production, {"model": {"name": MODEL}}, capacity=2)
    assert preflight.namespace() == "Active"
    assert list(preflight.quotas()) == []
    assert preflight.room().existing == 2
    barred = admission_verdict(preflight.admission())
    assert barred.outcome is Outcome.INCONCLUSIVE
    assert "cannot" in barred.reason
    values = {"modelCache": {"existingClaim": "cache"}}
    (claim,) = platform.preflight(production, values, capacity=2).references()
    assert "there is none" in claim.problem
    # As `vllm-rollout status` asks: every model that is known, and where each stands.
    acting_as("admin").store.write("rollout/other", None, expect=None)
    platform = acting_as("gate")
    assert models_known(platform) == ["other"]
    policy = load_policy(None, overrides={"namespace": production.namespace})
    status = model_status(platform, policy, MODEL, datetime.now(UTC))
    assert [each.revision for each in status.environments] == [None, None, 1]
    with pytest.raises(UnreachableError, match=r"cannot (create|patch|update) resource"):
        apply(platform, production, "two", 2)
    with pytest.raises(UnreachableError, match="secrets"):
        platform.rollback(production, 1, description="back", timeout=LONG)
    with pytest.raises(UnreachableError) as caught:
        platform.store.write("evidence/a", {}, expect=None)
    assert "verb 'create' on 'configmaps" in caught.value.remedy
    assert len(acting_as("admin").history(production)) == 1


def test_gate_reaches_the_pods_by_a_tunnel(
    namespace: Namespace, acting_as: As, production: Deployment
) -> None:
    namespace.behave(HEALTHY.serving())
    apply(acting_as("admin"), production, "one", 2)
    platform = acting_as("gate")
    try:
        assert httpx.get(f"{platform.base_url(production)}/health").status_code == httpx.codes.OK
    finally:
        platform.close()


@each_helm
def test_watch_rolls_back_and_removes_nothing(acting_as: As, production: Deployment) -> None:
    apply(acting_as("promote"), production, "one", 2)
    apply(acting_as("promote"), production, "two", 1)
    platform = acting_as("watch")
    platform.store.acquire(MODEL, "us", ttl=LONG)
    back = platform.rollback(production, 1, description="back", timeout=LONG)
    assert back.build == platform.history(production)[0].build
    with pytest.raises(UnreachableError, match="secrets"):
        platform.uninstall(production, timeout=timedelta(seconds=20))
    assert acting_as("admin").history(production)


def test_without_a_look_at_nodes_their_room_is_unknown(
    namespace: Namespace, acting_as: As, production: Deployment
) -> None:
    role = f"vllm-rollout-{namespace.name}-sees-nodes"
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{role}"
    namespace.cluster.send("DELETE", path).raise_for_status()
    preflight = acting_as("gate").preflight(production, {"model": {"name": MODEL}}, capacity=2)
    with pytest.raises(UnreachableError) as caught:
        preflight.room()
    assert "verb 'list' on 'pods in all namespaces'" in caught.value.remedy
    assert "`seesNodes: true`" in caught.value.remedy
