"""Readiness of a release: how many of the pods that its objects ask for are Ready, and what of the
others is known.

Helm's own `--wait` is content with fewer: Helm 3 with as many as maxUnavailable leaves, and with
none where updates are OnDelete, a Deployment is paused, or an operator makes the pods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.text import shown
from vllm_rollout.model.units import counted, of_total
from vllm_rollout.platform.kubernetes.api import KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.live_edits import object_path
from vllm_rollout.platform.kubernetes.pod_reader import list_namespace, list_pods
from vllm_rollout.platform.kubernetes.pods import (
    BUILD_ANNOTATION,
    Pod,
    parse_pod,
    replica_of,
    serving,
)
from vllm_rollout.platform.kubernetes.templates import Json, pod_templates, workloads_of

_NAMED = 5
"""Pods that are named at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """`ready` of the `wanted` pods are Ready and as asked for; `missing` says what is not yet.

    A line of `missing` is about one workload, one of `pods` about one pod.
    """

    ready: int = 0
    wanted: int = 0
    missing: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if nothing is missing."""
        return not self.missing

    @property
    def count(self) -> str:
        """`2 of 3 pods ready`."""
        return f"{of_total(self.ready, self.wanted, 'pod')} ready"

    def __str__(self) -> str:
        more = len(self.pods) - _NAMED
        rest = [f"and {counted(more, 'more pod')}"] if more > 0 else []
        return "; ".join([self.count, *self.missing, *self.pods[:_NAMED], *rest])


def readiness_of(api: KubernetesApi, deployment: Deployment, objects: Sequence[Json]) -> Readiness:
    """The readiness of the pods that `objects`, a release's, ask for.

    Raises: as `KubernetesApi.doing`.
    """
    found = [_of_workload(api, deployment, each) for each in workloads_of(objects)]
    missing = tuple(line for each in found for line in each.missing)
    own = _unready(list_pods(api, deployment)) if missing else ()
    return Readiness(
        ready=sum(each.ready for each in found),
        wanted=sum(each.wanted for each in found),
        missing=missing,
        # Pods of an operator may have the release's label too.
        pods=tuple(dict.fromkeys([*own, *(line for each in found for line in each.pods)])),
    )


def _unready(pods: Sequence[Pod]) -> tuple[str, ...]:
    """A line for each pod that is not Ready: its name and why."""
    replicas = (replica_of(pod) for pod in pods)
    return tuple(
        f"{each.name}: {', '.join(filter(None, [each.reason or each.phase, each.message]))}"
        for each in replicas
        if not each.ready
    )


def _of_workload(api: KubernetesApi, deployment: Deployment, applied: Json) -> Readiness:
    kind, name = str(applied["kind"]), applied["metadata"]["name"]
    namespace = applied["metadata"].get("namespace", deployment.namespace)
    live = _live(api, applied, namespace)
    if live is None:
        return Readiness(missing=(f"{kind} {name} is not there",))
    status = live.get("status") or {}
    if kind == "Pod":
        ready = replica_of(parse_pod(live)).ready
        return _counted(f"Pod {name}", wanted=1, ready=int(ready))
    seen = status.get("observedGeneration")
    generation = live["metadata"].get("generation", 0)
    # An operator of other kinds need not say which generation it has seen.
    if (seen or 0) < generation and (seen is not None or kind in _COUNTS):
        wanted = _wanted(live)
        return _counted(f"{kind} {name}", wanted=wanted, ready=0, notes=["not seen yet"])
    if kind in _COUNTS:
        return _COUNTS[kind](f"{kind} {name}", live["spec"], status)
    return _of_operator(api, namespace, f"{kind} {name}", live)


def _counted(workload: str, *, wanted: int, ready: int, notes: Sequence[str] = ()) -> Readiness:
    """Readiness by numbers; `notes` say why it is not complete whatever the numbers."""
    ready = max(0, min(ready, wanted))
    missing: tuple[str, ...] = ()
    if ready < wanted or notes:
        missing = (f"{workload}: {', '.join([f'{ready} of {wanted} ready', *notes])}",)
    return Readiness(ready=ready, wanted=wanted, missing=missing)


def _wanted(live: Json) -> int:
    return int((live.get("spec") or {}).get("replicas", 1))


def _deployment(workload: str, spec: Json, status: Json) -> Readiness:
    wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
    there = status.get("replicas", 0)
    former = there - updated
    notes = _surplus(former=former, there=there, wanted=wanted)
    if spec.get("paused") and (former > 0 or updated < wanted):
        notes.append("it is paused: kubectl rollout resume")
    # A quota, a webhook, a policy that lets none be made.
    notes += [
        f"{each.get('reason')}: {shown(str(each.get('message')))}"
        for each in status.get("conditions") or ()
        if updated < wanted
        if each.get("type") == "ReplicaFailure" and each.get("status") == "True"
    ]
    ready = min(updated, status.get("readyReplicas", 0) - max(0, former))
    return _counted(workload, wanted=wanted, ready=ready, notes=notes)


def _surplus(*, former: int, there: int, wanted: int) -> list[str]:
    if former > 0:
        return [f"{former} of the former template are still there"]
    return [f"{there - wanted} too many are still there"] if there > wanted else []


def _stateful_set(workload: str, spec: Json, status: Json) -> Readiness:
    strategy = spec.get("updateStrategy") or {}
    wanted, there = spec.get("replicas", 1), status.get("replicas", 0)
    # Pods below the partition keep the former template, as the chart asks.
    kept = (strategy.get("rollingUpdate") or {}).get("partition", 0)
    former = there - status.get("updatedReplicas", 0) - kept
    notes = _surplus(former=former, there=there, wanted=wanted)
    if former > 0:
        notes += _on_delete(strategy)
    ready = status.get("readyReplicas", 0) - max(0, former)
    return _counted(workload, wanted=wanted, ready=ready, notes=notes)


def _daemon_set(workload: str, spec: Json, status: Json) -> Readiness:
    wanted = status.get("desiredNumberScheduled", 0)
    updated = status.get("updatedNumberScheduled", 0)
    notes = []
    if updated < wanted:
        notes = ["the former template is still there", *_on_delete(spec.get("updateStrategy"))]
    return _counted(
        workload, wanted=wanted, ready=min(updated, status.get("numberReady", 0)), notes=notes
    )


def _replica_set(workload: str, spec: Json, status: Json) -> Readiness:
    return _counted(workload, wanted=spec.get("replicas", 1), ready=status.get("readyReplicas", 0))


_COUNTS = {
    "Deployment": _deployment,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "ReplicaSet": _replica_set,
    "ReplicationController": _replica_set,
}


def _on_delete(strategy: Json | None) -> list[str]:
    if (strategy or {}).get("type") != "OnDelete":
        return []
    return ["its updateStrategy OnDelete replaces none before it is deleted"]


def _of_operator(api: KubernetesApi, namespace: str, workload: str, live: Json) -> Readiness:
    """Readiness of what an operator (LeaderWorkerSet, …) makes pods of: by their labels, and by
    what its status says of replicas."""
    spec, status = live.get("spec") or {}, live.get("status") or {}
    groups = _wanted(live)
    templates = pod_templates(live)
    labels = [(each.get("metadata") or {}).get("labels") or {} for each in templates]
    if not any(labels):
        return _counted(workload, wanted=groups, ready=_ready_by_status(status, groups))
    size = (spec.get("leaderWorkerTemplate") or {}).get("size", 1)
    pods = serving(_pods_like(api, namespace, labels))
    current = [pod for pod in pods if any(_made_of(template, pod) for template in templates)]
    ready = [pod for pod in current if replica_of(pod).ready]
    notes = [f"{len(pods) - len(current)} of the former template are still there"]
    notes = notes if len(current) < len(pods) else []
    notes += [
        f"its status has {key}: {status[key]}"
        for key in ("replicas", "readyReplicas", "updatedReplicas")
        if isinstance(status.get(key), int) and status[key] < groups
    ]
    wanted = max(groups * size, len(current))
    found = _counted(workload, wanted=wanted, ready=len(ready), notes=notes)
    return replace(found, pods=_unready(current))


def _ready_by_status(status: Json, wanted: int) -> int:
    """Return how many are ready by the status alone, by its conditions where it has no number."""
    if isinstance(status.get("readyReplicas"), int):
        return int(status["readyReplicas"])
    fine = any(
        each.get("type") in ("Ready", "Available") and each.get("status") == "True"
        for each in status.get("conditions") or ()
    )
    return wanted if fine else 0


def _pods_like(api: KubernetesApi, namespace: str, labels: Sequence[Json]) -> list[Pod]:
    """Pods with all of the labels of one of the templates."""
    found: dict[str, Pod] = {}
    for selector in {",".join(f"{k}={v}" for k, v in each.items()) for each in labels if each}:
        found |= {pod.metadata.name: pod for pod in list_namespace(api, namespace, selector)}
    return [found[name] for name in sorted(found)]


def _made_of(template: Json, pod: Pod) -> bool:
    """Return True if the pod is one of this template, and not of the one before."""
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    if build := str(annotations.get(BUILD_ANNOTATION, "")):
        return pod.metadata.annotations.get(BUILD_ANNOTATION) == build
    rendered = {each["name"]: _process(each) for each in template["spec"]["containers"]}
    running = {each.name: _process(each.model_dump()) for each in pod.spec.containers}
    return rendered.items() <= running.items()


def _process(container: Mapping[str, Any]) -> tuple[str, ...]:
    """Image and command line; the image without its registry, which admission may replace."""
    words = (*(container.get("command") or ()), *(container.get("args") or ()))
    return (str(container.get("image", "")).rpartition("/")[2], *words)


def _live(api: KubernetesApi, applied: Json, namespace: str) -> Json | None:
    """The object as it is; None if it is not there."""
    resource = f"{applied['kind']} {applied['metadata']['name']} in namespace {namespace}"
    try:
        live: Json = api.request("get", resource, "GET", object_path(applied, namespace))
    except NotFoundError:
        return None
    return live
