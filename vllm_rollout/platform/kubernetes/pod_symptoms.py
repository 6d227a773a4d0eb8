"""Symptoms of a release's pods that do not serve: state, events, room on nodes, log."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.symptoms import NodeRoom, StartupProbe, Symptoms
from vllm_rollout.model.text import redact, secrets_in
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.platform.kubernetes.nodes import Nodes, requests_of
from vllm_rollout.platform.kubernetes.pods import Pod, list_pods, pod_log, replica_of

_LOG_LINES = 50
_INSUFFICIENT = re.compile(r"Insufficient (\S+?)[,.]?(?:\s|$)")


def symptoms_of(api: KubernetesApi, deployment: Deployment) -> list[Symptoms]:
    """The symptoms of every pod that is meant to serve, and of pods that could not be made.

    Events and nodes may be out of bounds for these credentials: then they are missing, and the
    rest is still reported.

    Raises: as `KubernetesApi.doing`, of the pods themselves.
    """
    pods = list_pods(api, deployment)
    events = _events(api, deployment.namespace)
    nodes = Nodes(api)
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
    nodes: Nodes,
) -> Symptoms:
    replica = replica_of(pod)
    if replica.ready:
        return Symptoms(replica=replica)
    own = tuple((r, m) for kind, name, r, m in events if kind == "Pod" and name == replica.name)
    scarce = next((found[1] for _, text in own if (found := _INSUFFICIENT.search(text))), "")
    last = next(
        (
            ended
            for container in (pod.server_status, *pod.status.container_statuses)
            if container
            if (ended := container.last_state.terminated or container.state.terminated)
        ),
        None,
    )
    probe = pod.server.startup_probe
    spec = pod.spec.model_dump(by_alias=True)
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
        requests=requests_of(spec),
        scarce=scarce,
        rooms=_rooms(nodes, scarce, spec) if scarce else (),
        events=own,
        log=pod_log(api, deployment, pod, tail=_LOG_LINES),
    )


def _rooms(nodes: Nodes, resource: str, pod_spec: Mapping[str, Any]) -> tuple[NodeRoom, ...]:
    """The room of each node; none when nodes or pods may not be listed."""
    try:
        return nodes.rooms(resource, pod_spec)
    except RolloutError:
        return ()


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
