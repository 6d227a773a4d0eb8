"""Symptoms of a release's pods that do not serve: state, events, room on nodes, log."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.symptoms import End, Event, NodeRoom, StartupProbe, Symptoms
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes.api import KubernetesApi
from vllm_rollout.platform.kubernetes.events import ObjectEvent, list_events, seconds_since
from vllm_rollout.platform.kubernetes.nodes import Nodes, requests_of
from vllm_rollout.platform.kubernetes.pod_fields import Container
from vllm_rollout.platform.kubernetes.pod_reader import (
    container_log,
    list_namespace,
    list_release,
    read_workload,
)
from vllm_rollout.platform.kubernetes.pods import INSTANCE_LABEL, Pod, replica_of, serving
from vllm_rollout.platform.kubernetes.templates import Json, hook_of

_LOG_LINES = 400
"""So many, because vLLM writes an engine's error before the longer traceback of its server."""
_OLD_SECONDS = 3600.0
_SETTLED_SECONDS = 600.0
"""A process that has started and run for so long has nothing to do with the end before it."""
_INSUFFICIENT = re.compile(r"Insufficient (\S+?)[,.]?(?:\s|$)")
_OF_A_CHANGE = re.compile(r"(?:install|upgrade|rollback)\b")
_MAKING = ("FailedCreate", "SuccessfulCreate")
_JOB_FAILED = ("FailedCreate", "BackoffLimitExceeded", "DeadlineExceeded")

ReadLog = Callable[[Pod, str, bool], str]
"""The log of a pod's container, or of the one before it."""


def symptoms_of(
    api: KubernetesApi, deployment: Deployment, *, hooks: Sequence[Json] = ()
) -> list[Symptoms]:
    """The symptoms of every replica, and of what else of the release is not as it should be.

    That is: pods that could not be made, Jobs among `hooks` that have not ended well, and where
    replicas are not ready, the release's other pods and Jobs. Events and nodes may be out of bounds
    for these credentials: then they are missing, and the rest is still reported.

    Raises: as `KubernetesApi.doing`, of the pods themselves.
    """
    everything = list_release(api, deployment)
    events = list_events(api, deployment.namespace)
    of = partial(
        symptoms_of_pod,
        events=events,
        nodes=Nodes(api),
        log=partial(_log, api, deployment),
        now=datetime.now(UTC),
    )
    found = [of(pod) for pod in serving(everything)]
    refused = [
        Symptoms(replica=None, events=(event,)) for event in _refused(api, deployment, events)
    ]
    jobs = {("Job", pod.owner[1]): f"Job {pod.owner[1]}" for pod in everything if pod.of_job}
    if not refused and found and all(each.replica and each.replica.ready for each in found):
        jobs = {}
    else:
        found += [of(p) for p in everything if p.serves and p.is_helper and not replica_of(p).ready]
        found += [of(p) for p in everything if p.metadata.deletion_timestamp]
    waited_for = {
        (hook["kind"], str(hook["metadata"].get("name"))): _title(hook)
        for hook in hooks
        if hook["kind"] in ("Job", "Pod") and _OF_A_CHANGE.search(hook_of(hook) or "")
    }
    if waited_for:
        everything = list_namespace(api, deployment.namespace)
    return found + refused + _of_jobs(jobs | waited_for, everything, events, of)


def _title(hook: Json) -> str:
    return f"hook {hook['kind']} {hook['metadata'].get('name')} ({hook_of(hook)})"


def _of_jobs(
    titles: Mapping[tuple[str, str], str],
    pods: Sequence[Pod],
    events: Sequence[ObjectEvent],
    of: Callable[..., Symptoms],
) -> list[Symptoms]:
    """The symptoms of each Job, by kind and name, that has not ended well: of its last failure."""
    found = []
    for (kind, name), title in titles.items():
        own = [p for p in pods if name == (p.metadata.name if kind == "Pod" else p.owner[1])]
        own = [p for p in own if p.metadata.deletion_timestamp is None]
        if any(pod.status.phase == "Succeeded" for pod in own):
            continue
        told = [each.event for each in events if (each.kind, each.name) == (kind, name)][-1:]
        failed = tuple(event for event in told if event.reason in _JOB_FAILED)
        if own:
            ended = [pod for pod in own if pod.status.phase == "Failed"]
            last = of(max(ended or own, key=lambda p: p.metadata.creation_timestamp), job=title)
            found.append(replace(last, events=(*last.events, *failed)))
        elif failed:
            found.append(Symptoms(replica=None, job=title, events=failed))
    return found


def _refused(
    api: KubernetesApi, deployment: Deployment, events: Sequence[ObjectEvent]
) -> Iterator[Event]:
    """Yield for each of the release's workloads whose pods cannot be made now why they cannot."""
    making = {
        (each.kind, each.name): each.event
        for each in events
        if each.kind in ("ReplicaSet", "StatefulSet") and each.event.reason in _MAKING
    }
    for (kind, name), event in making.items():
        if event.reason == "FailedCreate" and _lacks_pods(api, deployment, kind, name):
            yield event


def _lacks_pods(api: KubernetesApi, deployment: Deployment, kind: str, name: str) -> bool:
    """Return True if the workload is the release's and says itself that pods are missing."""
    # A ReplicaSet is called as its Deployment, with a suffix.
    where = ("StatefulSet", name) if kind == "StatefulSet" else ("Deployment", _stem(name))
    try:
        found = read_workload(api, deployment.namespace, *where)
    except RolloutError:
        return name.startswith(deployment.release)
    if found is None:
        return False
    labels = found["spec"]["template"]["metadata"].get("labels") or {}
    status = found.get("status") or {}
    if labels.get(INSTANCE_LABEL) != deployment.release:
        return False
    if kind == "StatefulSet":
        return bool(status.get("replicas", 0) < found["spec"].get("replicas", 1))
    conditions = status.get("conditions") or ()
    return any(c["type"] == "ReplicaFailure" and c["status"] == "True" for c in conditions)


def symptoms_of_pod(
    pod: Pod,
    *,
    events: Sequence[ObjectEvent],
    nodes: Nodes,
    log: ReadLog,
    now: datetime,
    job: str = "",
) -> Symptoms:
    """The symptoms of one pod, which is the `job`'s where one is named."""
    replica = replica_of(pod)
    metadata, status = pod.metadata, pod.status
    overdue = seconds_since(metadata.deletion_timestamp or "", now)
    if replica.ready and not job and overdue is None:
        return Symptoms(replica=replica)
    container = pod.unready or pod.server_status
    if job and pod.server_status and pod.server_status.state.terminated:
        # A Job does not end before its last container.
        container = next((c for c in status.container_statuses if c.state.running), container)
    own = tuple(each.event for each in events if _is_about(each, pod))
    unscheduled = next(
        (c.message for c in status.conditions if c.type == "PodScheduled" and c.status != "True"),
        "",
    )
    texts = [unscheduled, *(event.message for event in own)]
    scarce = next((found[1] for text in texts if (found := _INSUFFICIENT.search(text))), "")
    spec = pod.spec.model_dump(by_alias=True)
    symptoms = Symptoms(
        replica=replica,
        job=job,
        node=pod.spec.node_name,
        node_problem=_node_problem(nodes, pod.spec.node_name),
        overdue_seconds=overdue,
        unscheduled=unscheduled,
        requests=requests_of(spec),
        scarce=scarce,
        rooms=_rooms(nodes, scarce, spec) if scarce and not pod.spec.node_name else (),
        events=own,
    )
    return symptoms if container is None else _with(symptoms, pod, container, log, now)


def _with(
    symptoms: Symptoms, pod: Pod, container: Container, log: ReadLog, now: datetime
) -> Symptoms:
    """The symptoms with those of one of the pod's containers."""
    state, role, ended = container.state, pod.role_of(container.name), container.end
    end = None
    if ended is not None:
        ago = seconds_since(ended.finished_at, now) or 0.0
        began = seconds_since(ended.started_at, now)
        end = End(
            reason=ended.reason,
            exit_code=ended.exit_code,
            message=redact(ended.message),
            seconds_ago=ago,
            ran_seconds=None if began is None else max(0.0, began - ago),
        )
        if state.running and container.started and ago > _SETTLED_SECONDS:
            end = None
    text = ""
    if end is not None and state.terminated is None:
        text = log(pod, container.name, True)
    if not text and (state.running or state.terminated):
        text = log(pod, container.name, False)
    probe = pod.server.startup_probe if role == "server" else None
    return replace(
        symptoms,
        container=container.name,
        role=role,
        waiting=state.waiting.reason if state.waiting else "",
        message=redact(state.waiting.message) if state.waiting else "",
        running_seconds=(seconds_since(state.running.started_at, now) or 0.0)
        if state.running
        else None,
        started=bool(container.started),
        restarts=container.restart_count,
        end=end,
        startup_probe=StartupProbe(**probe.model_dump()) if probe else None,
        log=text,
    )


def _is_about(each: ObjectEvent, pod: Pod) -> bool:
    """Return True for an event of the pod, and of a pod of the same kind that made way for it."""
    metadata = pod.metadata
    if each.kind != "Pod" or each.event.seconds_ago > _OLD_SECONDS:
        return False
    if each.event.reason == "Preempted" and not pod.spec.node_name:
        return _stem(each.name) == _stem(metadata.name)
    if each.uid and metadata.uid:
        return each.uid == metadata.uid
    return each.name == metadata.name


def _stem(name: str) -> str:
    """The name without the suffix that a controller has given it."""
    return name.rpartition("-")[0]


def _node_problem(nodes: Nodes, name: str) -> str:
    """Return why the node is not ready; empty where it is, or may not be read."""
    if not name:
        return ""
    try:
        found = [node for node in nodes.nodes if node["metadata"]["name"] == name]
    except RolloutError:
        return ""
    if not found:
        return "it is gone"
    return next(
        (
            f"{condition.get('reason', 'NotReady')}: {condition.get('message', '')}"
            for condition in found[0]["status"].get("conditions") or ()
            if condition["type"] == "Ready" and condition["status"] != "True"
        ),
        "",
    )


def _rooms(nodes: Nodes, resource: str, pod_spec: Json) -> tuple[NodeRoom, ...]:
    """The room of each node; none when nodes or pods may not be listed."""
    try:
        return nodes.rooms(resource, pod_spec)
    except RolloutError:
        return ()


def _log(
    api: KubernetesApi, deployment: Deployment, pod: Pod, container: str, previous: bool
) -> str:
    """The last lines of a container's log; empty where there is none of the one before it."""
    try:
        return container_log(api, deployment, pod, container, previous=previous, tail=_LOG_LINES)
    except RolloutError as error:
        return "" if previous else f"(no log: {error})"
