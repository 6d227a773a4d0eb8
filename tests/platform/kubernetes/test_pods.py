"""A pod's JSON as a replica: never ready by mistake, and with the cause nearest to the root."""

from datetime import UTC, datetime
from typing import Any

import pytest

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.kubernetes.pods import parse_pod, replica_of, serving

BUILD = "sha256:" + "b" * 64


def pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """A pod as the API server tells it, cut to what a Deployment's pod always has."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "llama-2-7b-production-7c9f-abcde",
            "namespace": "system",
            "uid": "0f6b8a52-3a0e-4c0a-8f0e-9d1d9a3b6c11",
            "creationTimestamp": "2026-11-24T00:20:00Z",
            "labels": {"app.kubernetes.io/instance": "llama-2-7b-production"},
            "annotations": {"vllm-rollout/build": BUILD},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "llm-7c9f"}
            ],
            **metadata,
        },
        "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai"}]},
        "status": {"qosClass": "Burstable", **status},
    }


def status(
    container: dict[str, Any] | None = None,
    *,
    phase: str = "Running",
    ready: str = "False",
    **more: Any,
) -> dict[str, Any]:
    return {
        "phase": phase,
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {
                "type": "Ready",
                "status": ready,
                "reason": "ContainersNotReady",
                "message": "containers with unready status: [vllm]",
            },
        ],
        "containerStatuses": [{"name": "vllm", "imageID": "docker://x", **(container or {})}],
        **more,
    }


DIGEST = "sha256:" + "5" * 64
RUNNING = {"ready": True, "started": True, "state": {"running": {"startedAt": "…"}}}


def replica(document: dict[str, Any]) -> Replica:
    return replica_of(parse_pod(document))


def test_a_serving_pod_is_a_ready_replica_of_its_build() -> None:
    assert replica(pod(status(RUNNING, ready="True"))) == Replica(
        name="llama-2-7b-production-7c9f-abcde",
        phase="Running",
        ready=True,
        restarts=0,
        build=BUILD,
        image="",
    )


def test_where_a_pod_is_reached_since_when_and_by_which_other_it_serves() -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T00:30:00Z"}
    document = pod(status(RUNNING, podIP="10.0.0.7", conditions=[ready]))
    found = replica(document)
    assert (found.host, found.follower) == ("10.0.0.7", False)
    assert found.ready_since == datetime(2026, 11, 24, 0, 30, tzinfo=UTC)
    labels = {"leaderworkerset.sigs.k8s.io/worker-index": "1"}
    assert replica(pod(status(RUNNING), labels=labels)).follower
    labels = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
    assert not replica(pod(status(RUNNING), labels=labels)).follower


@pytest.mark.parametrize(
    ("image_id", "digest"),
    [
        (f"docker.io/vllm/vllm-openai@{DIGEST}", DIGEST),  # containerd, CRI-O
        (f"docker-pullable://vllm/vllm-openai@{DIGEST}", DIGEST),
        ("", ""),
        (f"docker.io/vllm/vllm-openai@{DIGEST[:-1]}", ""),
    ],
)
def test_the_image_is_what_the_runtime_pulled_for_the_server(image_id: str, digest: str) -> None:
    mesh = {"name": "istio-proxy", "imageID": "istio@sha256:" + "f" * 64}
    said = status({**RUNNING, "imageID": image_id}, ready="True")
    said["containerStatuses"].insert(0, mesh)
    assert replica(pod(said)).image == digest


PROXY = {"name": "istio-proxy", "image": "istio/proxyv2"}
GPU = {"limits": {"nvidia.com/gpu": "1", "cpu": "4"}}


@pytest.mark.parametrize(
    ("containers", "annotations"),
    [
        ([PROXY, {"name": "server", "image": "vllm/vllm-openai"}], {}),
        ([PROXY, {"name": "server", "image": "own/llm", "resources": GPU}], {}),
        ([PROXY, {"name": "server"}], {"kubectl.kubernetes.io/default-container": "server"}),
        ([{"name": "server"}, PROXY], {"kubectl.kubernetes.io/default-container": "gone"}),
    ],
)
def test_the_server_is_found_beside_the_containers_of_other_hands(
    containers: list[dict[str, Any]], annotations: dict[str, str]
) -> None:
    document = pod(status(), annotations=annotations)
    document["spec"]["containers"] = containers

    assert parse_pod(document).server.name == "server"


@pytest.mark.parametrize(
    "unclear",
    [
        {},
        {"phase": "Running"},
        {"phase": "Running", "conditions": []},
        status(RUNNING, ready="Unknown"),
        {"phase": "Running", "containerStatuses": [{"name": "vllm", **RUNNING}]},
    ],
)
def test_a_pod_that_does_not_say_it_is_ready_is_not(unclear: dict[str, Any]) -> None:
    assert not replica(pod(unclear)).ready


@pytest.mark.parametrize(
    ("said", "reason", "in_message"),
    [
        (
            {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                    }
                ],
            },
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        (
            status(
                {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pull"}}},
                phase="Pending",
            ),
            "ImagePullBackOff",
            "Back-off pull",
        ),
        (
            status(
                {
                    "restartCount": 5,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                }
            ),
            "CrashLoopBackOff",
            "vllm ended with OOMKilled, exit code 137",
        ),
        (
            status({"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}, phase="Failed"),
            "Error",
            "exit code 1",
        ),
        (
            status(
                {
                    "restartCount": 1,
                    "started": False,
                    "state": {"running": {"startedAt": "…"}},
                    "lastState": {"terminated": {"exitCode": 143, "reason": "Error"}},
                }
            ),
            "Restarted",
            "exit code 143",
        ),
        (
            status(
                {"state": {"waiting": {"reason": "PodInitializing"}}},
                phase="Pending",
                initContainerStatuses=[
                    {"name": "fetch", "state": {"waiting": {"reason": "ErrImagePull"}}}
                ],
            ),
            "ErrImagePull",
            "",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"},
            "Evicted",
            "ephemeral-storage",
        ),
        (
            status({"started": False, "state": {"running": {"startedAt": "…"}}}),
            "ContainersNotReady",
            "[vllm]",
        ),
    ],
)
def test_the_reason_is_the_cause_and_not_its_symptom(
    said: dict[str, Any], reason: str, in_message: str
) -> None:
    found = replica(pod(said))

    assert not found.ready
    assert found.reason == reason
    assert in_message in found.message


def test_restarts_of_the_server_are_counted_and_not_of_a_proxy() -> None:
    document = status({**RUNNING, "restartCount": 3}, ready="True")
    document["containerStatuses"].insert(0, {"name": "istio-proxy", "restartCount": 9})
    assert replica(pod(document)).restarts == 3


@pytest.mark.parametrize(
    "metadata",
    [
        {"deletionTimestamp": "2026-11-24T00:21:00Z"},
        {"annotations": {"helm.sh/hook": "test"}},
        {"ownerReferences": [{"kind": "Job", "name": "warm-up"}]},
    ],
)
def test_pods_that_are_not_meant_to_serve_are_no_replicas(metadata: dict[str, Any]) -> None:
    assert not parse_pod(pod(status(RUNNING, ready="True"), **metadata)).serves
    assert parse_pod(pod(status(RUNNING, ready="True"))).serves


@pytest.mark.parametrize(
    ("phase", "reason"), [("Failed", "Evicted"), ("Failed", "Terminated"), ("Succeeded", "")]
)
def test_leftovers_count_only_where_nothing_has_taken_their_place(phase: str, reason: str) -> None:
    left = parse_pod(pod({"phase": phase, "reason": reason}))
    new = parse_pod(pod(status(RUNNING, ready="True")))

    assert serving([left, new]) == [new]
    assert serving([left]) == [left]


ROUTER = {"name": "router", "image": "lmcache/lmstack-router:1"}
ENGINE = {"name": "server", "image": "own/llm"}
CACHE = {"name": "vllm", "image": "lmcache/vllm-openai"}
REDIS = {"name": "store", "image": "own/kv"}


@pytest.mark.parametrize(
    ("container", "labels", "counts"),
    [
        (ENGINE, {}, True),
        (ROUTER, {}, False),
        (CACHE, {"app.kubernetes.io/component": "cache-server"}, False),
        (ROUTER | {"resources": GPU}, {}, True),
    ],
)
def test_routers_and_caches_of_the_release_are_no_replicas(
    container: dict[str, Any], labels: dict[str, str], counts: bool
) -> None:
    document = pod(status(RUNNING, ready="True"), labels=labels)
    document["spec"]["containers"] = [container]

    assert bool(serving([parse_pod(document)])) is counts


def test_beside_pods_with_a_device_no_pod_without_one_is_a_replica() -> None:
    document = pod(status(RUNNING, ready="True"))
    made = [{"containers": [c]} for c in (ENGINE | {"resources": GPU}, REDIS)]
    engine, other = (parse_pod(document | {"spec": spec}) for spec in made)

    assert serving([engine, other]) == [engine]


def test_containers_that_are_not_of_the_template_are_never_the_server() -> None:
    document = pod(status())
    document["spec"]["containers"] = [PROXY, {"name": "server"}]
    found = parse_pod(document)

    assert found.of_unknown_server
    assert found.owner == ("Deployment", "llm")
    assert found.model_copy(update={"template": ("server",)}).server.name == "server"


def test_what_is_not_a_pod_is_an_error() -> None:
    with pytest.raises(DeployError, match="cannot be read"):
        parse_pod({"kind": "Status", "message": "nonsense"})
