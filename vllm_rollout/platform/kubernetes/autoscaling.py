"""Autoscalers of a release's pods, and the number of pods that they have brought it to.

Kubernetes' own (HorizontalPodAutoscaler) and KEDA's (ScaledObject). Where one scales a workload,
Helm's manifest names no number, so neither an upgrade nor a rollback changes it: `set_pods` does.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.platform.base import ForeignChangeError
from vllm_rollout.platform.kubernetes.api import KubernetesApi
from vllm_rollout.platform.kubernetes.live_edits import object_path
from vllm_rollout.platform.kubernetes.pod_reader import list_workloads
from vllm_rollout.platform.kubernetes.releases import TRACK_LABEL
from vllm_rollout.platform.kubernetes.templates import Json

MANAGER = "vllm-rollout"
"""Field manager of what the suite itself sets of an object."""
_TRACKS = ("stable", "canary")
_KEDA_PAUSED = ("autoscaling.keda.sh/paused", "autoscaling.keda.sh/paused-replicas")
_KEDA_MOST = 100
"""Of a ScaledObject that names none, by KEDA's definition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """One autoscaler: the workload that it scales (kind, name), and at most how many pods."""

    name: str
    scales: tuple[str, str]
    most: int
    paused: bool = False

    def __str__(self) -> str:
        return f"{self.name} (paused)" if self.paused else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The pods that a release's autoscaled workloads, and its canary, ask for now."""

    stable: int
    canary: int
    by: tuple[Autoscaler, ...]

    @property
    def pods(self) -> int:
        """All of them."""
        return self.stable + self.canary

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are the autoscalers', as `field_conflicts` names them."""
        return tuple(f".spec.replicas of {' '.join(each.scales)} " for each in self.by)

    def of(self, target: Target) -> Target:
        """`target` in the same shares of the pods that there are; never fewer than there are, nor
        than the target's own as far as an autoscaler lets them be."""
        capacity = max(self.pods, min(target.capacity, *(each.most for each in self.by)), 1)
        share = -(-target.replicas * capacity // target.capacity)
        return Target(
            build=target.build,
            values=target.values,
            replicas=max(1, min(share, capacity)),
            capacity=capacity,
        )


def read_autoscalers(api: KubernetesApi, namespace: str) -> list[Autoscaler]:
    """The autoscalers in a namespace. KEDA's are left out where its API is not there, or must not
    be read: what it scales has a HorizontalPodAutoscaler besides.

    Raises: as `KubernetesApi.doing`.
    """
    where = f"horizontalpodautoscalers in namespace {namespace}"
    path = f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"
    answer = api.request("list", where, "GET", path)
    found = [_of_kubernetes(each) for each in answer["items"]]
    where = f"scaledobjects in namespace {namespace}"
    with api.doing("list", where):
        path = f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects"
        status, text = api.ask("GET", path)
        if status < HTTPStatus.BAD_REQUEST:
            found += [_of_keda(each) for each in json.loads(text)["items"]]
        elif status not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise api.refusal(status, text, "list", where)
    return found


def _of_kubernetes(document: Json) -> Autoscaler:
    spec = document["spec"]
    target = spec["scaleTargetRef"]
    return Autoscaler(
        name=f"HorizontalPodAutoscaler {document['metadata']['name']}",
        scales=(target["kind"], target["name"]),
        most=int(spec["maxReplicas"]),
    )


def _of_keda(document: Json) -> Autoscaler:
    spec, annotations = document["spec"], document["metadata"].get("annotations") or {}
    target = spec.get("scaleTargetRef") or {}
    return Autoscaler(
        name=f"ScaledObject {document['metadata']['name']}",
        scales=(target.get("kind") or "Deployment", target.get("name", "")),
        most=int(spec.get("maxReplicaCount") or _KEDA_MOST),
        paused=any(annotations.get(key, "false") != "false" for key in _KEDA_PAUSED),
    )


class Autoscaling:
    """Reads and sets the number of pods of releases that an autoscaler scales.

    `ensure` is asked right before a number is set, and raises where it may not be.
    """

    def __init__(self, api: Callable[[], KubernetesApi], ensure: Callable[[], None]) -> None:
        self._api = api
        self._ensure = ensure

    def scale(self, deployment: Deployment) -> Scale | None:
        """Return how many pods the release is scaled to; None where nothing scales it.

        Raises: as `KubernetesApi.doing`.
        """
        scalers = read_autoscalers(self._api(), deployment.namespace)
        if not scalers:
            return None
        workloads = self._workloads(deployment)
        by_name = {(each["kind"], each["metadata"]["name"]): each for each in workloads}
        by = tuple(each for each in scalers if each.scales in by_name)
        if not by:
            return None
        stable = _of_track(workloads, "stable") or [by_name[key] for key in {s.scales for s in by}]
        return Scale(
            stable=sum(map(_pods, stable)),
            canary=sum(map(_pods, _of_track(workloads, "canary"))),
            by=by,
        )

    def set_pods(self, deployment: Deployment, pods: int) -> None:
        """Let the Deployment of the stable pods have so many; a chart without one has none set.

        The number is the suite's own then, until an autoscaler sets it: what Helm does not name any
        more, it takes away only from itself.

        Raises: as `KubernetesApi.doing`.
        """
        self._number(self._workloads(deployment), pods)

    def resume(self, deployment: Deployment) -> None:
        """Let Deployments that somebody has paused change again.

        Raises: as `KubernetesApi.doing`.
        """
        for each in self._workloads(deployment):
            if each["spec"].get("paused"):
                self._set(each, "paused", False)

    def follow(self, deployment: Deployment, before: int, planned: int) -> None:
        """Bring the stable pods from `before` to `planned`; what an autoscaler has added meanwhile
        stays.

        Raises: as `set_pods`.
        """
        found = self._workloads(deployment)
        live = sum(map(_pods, _scalable(found)))
        wanted = live + planned - before if planned < before else max(live, planned)
        if wanted != live:
            self._number(found, wanted)

    def keep(self, deployment: Deployment, manifest: Sequence[Json]) -> int:
        """Keep the number of pods in a rollback to `manifest`, which may remove the canary's.

        Returns how many there are to be, 0 where nothing scales the release. Raises: as `set_pods`.
        """
        scale = self.scale(deployment)
        if unnumbered(manifest):
            found = self._workloads(deployment)
            pods = sum(_pods(e) for track in _TRACKS for e in _of_track(found, track))
            self._number(found, max(1, pods))
        return scale.pods if scale else 0

    def restore(self, deployment: Deployment, pods: int) -> None:
        """Bring a release that is still scaled back to as many pods as it had before a rollback.

        Raises: as `set_pods`.
        """
        scale = self.scale(deployment) if pods else None
        if scale is not None and scale.pods < pods:
            self.set_pods(deployment, pods - scale.canary)

    def _workloads(self, deployment: Deployment) -> list[Json]:
        return list_workloads(self._api(), deployment.namespace, [deployment.release])

    def _number(self, workloads: Sequence[Json], pods: int) -> None:
        for each in _scalable(workloads):
            self._set(each, "replicas", pods)

    def _set(self, workload: Json, key: str, value: Any) -> None:
        kind, meta = workload["kind"], workload["metadata"]
        body = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": meta["name"]},
            "spec": {key: value},
        }
        resource = f"{kind.lower()}s {meta['name']} in namespace {meta['namespace']}"
        self._ensure()
        self._api().request(
            *("patch", resource),
            *("PATCH", object_path(body, meta["namespace"])),
            query_params=[("fieldManager", MANAGER), ("force", "true")],
            header_params={"Content-Type": "application/apply-patch+yaml"},
            body=json.dumps(body),
        )

    def pods(self, deployment: Deployment) -> int:
        """Return how many pods the Deployment of the stable pods asks for; 0 without one."""
        return sum(map(_pods, _scalable(self._workloads(deployment))))


def unnumbered(objects: Sequence[Json]) -> bool:
    """Return whether rendered objects leave the number of their stable pods to others."""
    return any("replicas" not in each["spec"] for each in _of_track(objects, "stable"))


def counted(objects: Sequence[Json], pods: int) -> list[Json]:
    """The objects with so many stable pods, where they leave the number to others."""
    return [
        {**each, "spec": {"replicas": max(1, pods), **each["spec"]}} if unnumbered([each]) else each
        for each in objects
    ]


def refuse_resets(
    deployment: Deployment, revisions: Sequence[Sequence[Json]], scale: Scale | None
) -> None:
    """Return if no objects of these revisions set a number of pods that an autoscaler sets.

    Raises:
        ForeignChangeError: they do: it would fall, or go to and fro.
    """
    found = {
        f"{scaler} scales {' '.join(scaler.scales)}, whose number of pods the chart sets"
        for scaler in (scale.by if scale else ())
        for each in chain.from_iterable(revisions)
        if (each["kind"], each["metadata"]["name"]) == scaler.scales and "replicas" in each["spec"]
    }
    if found:
        raise ForeignChangeError(
            f"{deployment} is not changed: {'; '.join(sorted(found))}",
            remedy="Leave the number out of the chart: with vllm-deployment by the value "
            "`autoscaling.external: true`, or `autoscaling.enabled: true` for an autoscaler of the "
            "release itself. Or remove the autoscaler.",
        )


def _of_track(objects: Sequence[Json], track: str) -> list[Json]:
    return [
        each
        for each in objects
        if each["kind"] in ("Deployment", "StatefulSet")
        and (each["metadata"].get("labels") or {}).get(TRACK_LABEL) == track
    ]


def _scalable(workloads: Sequence[Json]) -> list[Json]:
    """The Deployment of the stable pods; none where a chart has no such."""
    return [each for each in _of_track(workloads, "stable") if each["kind"] == "Deployment"]


def _pods(workload: Json) -> int:
    return int(workload["spec"].get("replicas", 1))
