"""What the API server knows of a release's pods that do not serve: state, events, room, log."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vllm_rollout.deployment import Deployment
from vllm_rollout.errors import RolloutError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.platform.kubernetes.pods import Pod, list_pods, pod_log, replica_of
from vllm_rollout.platform.redact import redact, secrets_in
from vllm_rollout.symptoms import NodeRoom, StartupProbe, Symptoms

_LOG_LINES = 50
_INSUFFICIENT = re.compile(r"Insufficient (\S+?)[,.]?(?:\s|$)")
_ENDED = ("Succeeded", "Failed")


class _Nodes:
    """Nodes and what their pods ask for, read at the first question and once for all pods."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    def rooms(self, resource: str, pod: Pod) -> tuple[NodeRoom, ...]:
        """Each node's room for `resource`, by name; none when nodes or pods may not be listed.

        A node that would refuse `pod` says so.
        """
        nodes, pods = self._listed
        used: defaultdict[str, float] = defaultdict(float)
        for each in pods:
            if each["status"].get("phase") not in _ENDED:
                used[each["spec"].get("nodeName", "")] += _requests(each["spec"]).get(resource, 0)
        return tuple(
            NodeRoom(
                node=node["metadata"]["name"],
                allocatable=_quantity(node["status"]["allocatable"].get(resource, "0")),
                requested=used[node["metadata"]["name"]],
                refused=_refusal(node, pod),
            )
            for node in sorted(nodes, key=lambda each: str(each["metadata"]["name"]))
        )

    @cached_property
    def _listed(self) -> tuple[list[Any], list[Any]]:
        core = self._api.core
        try:
            with self._api.doing("list", "nodes"):
                nodes = core.list_node(_request_timeout=TIMEOUT_SECONDS).items
            with self._api.doing("list", "pods in all namespaces"):
                pods = core.list_pod_for_all_namespaces(_request_timeout=TIMEOUT_SECONDS).items
        except RolloutError:
            return [], []
        plain = core.api_client.sanitize_for_serialization
        return plain(nodes), plain(pods)


def symptoms_of(api: KubernetesApi, deployment: Deployment) -> list[Symptoms]:
    """The symptoms of every pod that is meant to serve, and of pods that could not be made.

    Events and nodes may be out of bounds for these credentials: then they are missing, and the
    rest is still told.

    Raises: as `KubernetesApi.doing`, of the pods themselves.
    """
    pods = list_pods(api, deployment)
    events = _events(api, deployment.namespace)
    nodes = _Nodes(api)
    found = [_of_pod(api, deployment, pod, events, nodes) for pod in pods]
    # ReplicaSets and Jobs are called as their Deployment, with a suffix.
    unmade = [
        (reason, message)
        for kind, name, reason, message in events
        if kind == "ReplicaSet" and name.startswith(f"{deployment.release}-")
        if reason == "FailedCreate"
    ]
    if unmade:
        found.append(Symptoms(replica=None, events=tuple(unmade)))
    return found


def _of_pod(
    api: KubernetesApi,
    deployment: Deployment,
    pod: Pod,
    events: Sequence[tuple[str, str, str, str]],
    nodes: _Nodes,
) -> Symptoms:
    replica = replica_of(pod)
    if replica.ready:
        return Symptoms(replica=replica)
    own = tuple((r, m) for kind, name, r, m in events if kind == "Pod" and name == replica.name)
    scarce = next((found[1] for _, text in own if (found := _INSUFFICIENT.search(text))), "")
    last = next(
        (
            ended
            for container in pod.status.container_statuses
            if (ended := container.last_state.terminated or container.state.terminated)
        ),
        None,
    )
    container = pod.spec.containers[0]
    probe = container.startup_probe
    return Symptoms(
        replica=replica,
        node=pod.spec.node_name,
        ended=last.reason if last else "",
        exit_code=last.exit_code if last else None,
        startup_probe=StartupProbe(
            period_seconds=probe.period_seconds, failure_threshold=probe.failure_threshold
        )
        if probe
        else None,
        requests=_requests(pod.spec.model_dump(by_alias=True)),
        scarce=scarce,
        rooms=nodes.rooms(scarce, pod) if scarce else (),
        events=own,
        log=pod_log(api, deployment, pod, tail=_LOG_LINES),
    )


def _events(api: KubernetesApi, namespace: str) -> list[tuple[str, str, str, str]]:
    """(kind, name, reason, message) of the namespace's events, oldest first; none if barred."""
    try:
        with api.doing("list", f"events in namespace {namespace}"):
            found = api.core.list_namespaced_event(namespace, _request_timeout=TIMEOUT_SECONDS)
    except RolloutError:
        return []
    secrets = secrets_in()
    items = sorted(found.items, key=lambda each: str(each.last_timestamp or each.event_time or ""))
    return [
        (
            each.involved_object.kind or "",
            each.involved_object.name or "",
            each.reason or "",
            redact(each.message or "", secrets),
        )
        for each in items
    ]


def _requests(spec: Mapping[str, Any]) -> dict[str, float]:
    """What a pod's containers ask for together, in base units; a limit alone is a request too."""
    total: defaultdict[str, float] = defaultdict(float)
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, quantity in asked.items():
            total[name] += _quantity(quantity)
    return dict(total)


def _quantity(text: str) -> float:
    # Imported late: the client takes a second, and most commands have no use for it.
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))  # type: ignore[no-untyped-call]


def _refusal(node: Mapping[str, Any], pod: Pod) -> str:
    """Why the node takes no such pod, whatever its room; empty when it does."""
    labels = node["metadata"].get("labels") or {}
    for key, value in pod.spec.node_selector.items():
        if labels.get(key) != value:
            return f"the selector {key}={value}"
    if node["spec"].get("unschedulable"):
        return "it is cordoned"
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(
            _tolerates(toleration, taint) for toleration in pod.spec.tolerations
        ):
            return f"the taint {taint['key']}"
    return ""


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    same = toleration.get("value", "") == taint.get("value", "")
    return same or toleration.get("operator") == "Exists"
