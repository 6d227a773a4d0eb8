"""How many pods of a workload count as ready, by its status."""

from contextlib import nullcontext
from typing import Any, cast

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.kubernetes.api import KubernetesApi
from vllm_rollout.platform.kubernetes.readiness import readiness_of

PRODUCTION = Deployment("m", "production")
TEMPLATE = {"spec": {"containers": [{"name": "vllm"}]}}


def told(kind: str, spec: dict[str, Any], status: dict[str, Any], *, seen: int = 2) -> str:
    """What is missing of a workload of three pods with this spec and status."""
    rendered = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {"replicas": 3, "template": TEMPLATE, **spec},
    }
    live = {
        **rendered,
        "metadata": {"name": "x", "generation": 2},
        "status": {"observedGeneration": seen, **status},
    }
    listed = type("Listed", (), {"items": []})
    core: Any = type("Core", (), {"list_namespaced_pod": lambda *_, **__: listed})
    api: Any = type("Api", (), {"core": core(), "doing": lambda *_: nullcontext()})()
    api.request = lambda *_: live
    found = readiness_of(cast("KubernetesApi", api), PRODUCTION, [rendered])
    return "; ".join(found.missing)


def of(replicas: int, updated: int, ready: int) -> dict[str, int]:
    return {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready}


FORMER = "of the former template are still there"
ON_DELETE = "its updateStrategy OnDelete replaces none before it is deleted"
QUOTA = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}


@pytest.mark.parametrize(
    ("kind", "spec", "status", "missing"),
    [
        ("Deployment", {}, of(3, 3, 3), ""),
        ("Deployment", {}, of(3, 3, 2), "2 of 3 ready"),
        ("Deployment", {}, of(4, 3, 4), f"3 of 3 ready, 1 {FORMER}"),
        ("Deployment", {}, of(4, 1, 3), f"0 of 3 ready, 3 {FORMER}"),
        ("Deployment", {}, of(4, 4, 4), "3 of 3 ready, 1 too many are still there"),
        ("Deployment", {"replicas": 0}, {}, ""),
        (
            "Deployment",
            {"paused": True},
            of(3, 0, 3),
            f"0 of 3 ready, 3 {FORMER}, it is paused: kubectl rollout resume",
        ),
        (
            "Deployment",
            {},
            {**of(1, 1, 1), "conditions": [QUOTA]},
            "1 of 3 ready, FailedCreate: quota",
        ),
        ("StatefulSet", {}, of(3, 3, 3), ""),
        ("StatefulSet", {}, of(2, 2, 2), "2 of 3 ready"),
        ("StatefulSet", {}, of(3, 1, 3), f"1 of 3 ready, 2 {FORMER}"),
        ("StatefulSet", {}, of(4, 4, 4), "3 of 3 ready, 1 too many are still there"),
        ("StatefulSet", {"updateStrategy": {"rollingUpdate": {"partition": 2}}}, of(3, 1, 3), ""),
        (
            "StatefulSet",
            {"updateStrategy": {"type": "OnDelete"}},
            of(3, 0, 3),
            f"0 of 3 ready, 3 {FORMER}, {ON_DELETE}",
        ),
        (
            "DaemonSet",
            {},
            {"desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberReady": 2},
            "1 of 2 ready, the former template is still there",
        ),
    ],
)
def test_pods_count_when_they_are_of_the_new_template_and_ready(
    kind: str, spec: dict[str, Any], status: dict[str, Any], missing: str
) -> None:
    assert told(kind, spec, status) == (f"{kind} x: {missing}" if missing else "")


def test_a_status_from_before_the_change_counts_for_nothing() -> None:
    assert told("Deployment", {}, of(3, 3, 3), seen=1) == "Deployment x: 0 of 3 ready, not seen yet"
