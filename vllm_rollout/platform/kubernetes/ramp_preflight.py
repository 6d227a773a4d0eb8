"""A rollout before it begins: its revisions, what it runs beside the release, what it makes."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vllm_rollout.model.deployment import Canary, Deployment
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.preflight_facts import NewObjects
from vllm_rollout.model.units import counted
from vllm_rollout.platform.kubernetes.admission import is_made, marked_by_helm
from vllm_rollout.platform.kubernetes.chart import load_chart
from vllm_rollout.platform.kubernetes.helm import HelmRevision
from vllm_rollout.platform.kubernetes.http_routes import HttpRoutes
from vllm_rollout.platform.kubernetes.nodes import quantity
from vllm_rollout.platform.kubernetes.releases import Releases
from vllm_rollout.platform.kubernetes.rendered import Rendered
from vllm_rollout.platform.kubernetes.surge_plan import Pods, surge_plan
from vllm_rollout.platform.kubernetes.templates import Json

_BACK = 2
"""Revisions of the way back: a step's own, where its pods do not come up, and the rollback."""
_DOCUMENTS = 12
"""ConfigMaps that one run may make: evidence, decisions, journal, and the indexes of these."""
_HISTORY = {"secret": "secrets", "configmap": "configmaps"}
"""Resource of Helm's history by its driver. All of it stays: the suite sets no limit."""
_COUNTED_BY_NAME = ("services", "secrets", "configmaps", "persistentvolumeclaims")


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """How a release comes to what the `whole` of it is to run: by `steps` in replicas, with so many
    pods of `surge` and `unavailable`. `keeps_state` is whether the run's documents are in the
    release's namespace. What takes long is asked once: what serves, and what is rendered.
    """

    whole: Rendered
    releases: Releases
    driver: Callable[[str], str]
    """Helm's storage driver of a release."""
    routes: HttpRoutes
    steps: tuple[int, ...]
    surge: int
    unavailable: int
    keeps_state: bool

    @cached_property
    def objects(self) -> list[Json]:
        """The objects of the whole release, and those that the ramp runs beside it.

        Raises:
            UsageError: the chart makes none of the values.
        """
        found: list[Json] = []
        for each in (self.whole, *self._beside()):
            if each.rendering.complaint:
                raise UsageError(each.rendering.complaint)
            found += marked_by_helm(each.rendering.objects, each.deployment)
        return found

    def patches(self) -> list[Json]:
        """Parts of other objects that the ramp writes: the route of a ramp by traffic.

        Raises: as `HttpRoutes.divided`.
        """
        deployment = self.whole.deployment
        return [self.routes.divided(_target(deployment))] if isinstance(deployment, Canary) else []

    def new_objects(self, paths: Mapping[tuple[str, str], str]) -> NewObjects:
        """Objects that the rollout and its way back make, by a quota's keys.

        The chart's that are not there yet, one of Helm's for each revision, and the run's own
        documents. `paths` are those of `KubernetesApi`.

        Raises: as `objects`.
        """
        counts: defaultdict[str, float] = defaultdict(float)
        notes: dict[str, str] = {}
        there = self._applied()
        objects = {named(each): each for each in self.objects if is_made(each)}
        for each in objects.values():
            if named(each) not in there:
                for key, amount in _use(each, paths).items():
                    counts[key] += amount
            if each.get("kind") == "Deployment":
                counts["count/replicasets.apps"] += 1
        revisions = self.revisions()
        history = _HISTORY.get(self.driver(self.whole.deployment.release))
        ours: list[tuple[str | None, int, str]] = [
            (
                history,
                revisions + _BACK,
                f"{counted(revisions, 'revision')} and {_BACK} of the way back",
            )
        ]
        if self.keeps_state:
            ours.append(("configmaps", _DOCUMENTS, "the run's own documents"))
        for resource, number, note in ours:
            for key in (resource, f"count/{resource}") if resource else ():
                counts[key] += number
                notes[key] = f"{notes[key]}, {note}" if key in notes else note
        return NewObjects(counts=dict(counts), notes=notes)

    def revisions(self) -> int:
        """Return how many revisions it takes; a canary's are those of the release beside it too."""
        deployment, capacity = self.whole.deployment, self.whole.capacity
        if isinstance(deployment, Canary):
            return len(self.steps) + 1
        if self._served is None:
            return len(self.steps)
        at, number = self.releases.pods(deployment, self._served), 0
        for replicas in self.steps:
            goal = Pods(stable=capacity)
            if replicas < capacity:
                goal = Pods(stable=capacity - replicas, canary=replicas)
            number += len(
                surge_plan(
                    at, goal, capacity=capacity, surge=self.surge, unavailable=self.unavailable
                )
            )
            at = goal
        return number

    def _beside(self) -> list[Rendered]:
        """The release with a canary of the build in it; for a canary's release the one beside."""
        whole = self.whole
        if isinstance(whole.deployment, Canary):
            return [replace(whole, deployment=_target(whole.deployment))]
        split = min(self.steps) < whole.capacity and load_chart(whole.chart).ramps
        if self._served is None or not split:
            return []
        stable = self.releases.stable_pod_template(whole.deployment, self._served)
        canary = {"replicaCount": 1, "handover": False, "stablePodTemplate": stable}
        return [replace(whole, own={"canary": canary})]

    @cached_property
    def _served(self) -> HelmRevision | None:
        return self._served_by(self.whole.deployment)

    def _served_by(self, deployment: Deployment) -> HelmRevision | None:
        return self.releases.to_return_to(deployment, self.releases.entries(deployment))

    def _applied(self) -> set[tuple[str, str]]:
        """Kinds and names of the objects that the releases have."""
        whole = self.whole
        releases = [(whole.deployment, self._served)]
        if isinstance(whole.deployment, Canary):
            target = _target(whole.deployment)
            releases.append((target, self._served_by(target)))
        return {
            named(each)
            for deployment, served in releases
            if served
            for each in self.releases.manifest(deployment, served)
        }


def named(each: Json) -> tuple[str, str]:
    """Kind and name of an object."""
    return str(each.get("kind", "")), str(each["metadata"].get("name", ""))


def _target(canary: Canary) -> Deployment:
    """The deployment that a canary is beside."""
    return Deployment(canary.model, canary.environment, canary.namespace)


def _use(each: Json, paths: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """Return what one object uses of a quota on objects, by the quota's own keys."""
    version = str(each.get("apiVersion", ""))
    path = paths.get((version, str(each.get("kind"))))
    if path is None or "{}" not in path:
        return {}
    resource, spec = path.rpartition("/")[2], each.get("spec") or {}
    group = version.rpartition("/")[0]
    found: dict[str, float] = {f"count/{resource}{'.' if group else ''}{group}": 1}
    if not group and resource in _COUNTED_BY_NAME:
        found[resource] = 1
    if resource == "services":
        kind, ports = spec.get("type"), len(spec.get("ports") or ())
        found |= {"services.loadbalancers": 1} if kind == "LoadBalancer" else {}
        found |= {"services.nodeports": ports} if kind in ("LoadBalancer", "NodePort") else {}
    claims = [(spec, 1)] if resource == "persistentvolumeclaims" else []
    for template in spec.get("volumeClaimTemplates") or ():
        replicas = int(spec.get("replicas", 1))
        claims.append((template.get("spec") or {}, replicas))
        for key in ("persistentvolumeclaims", "count/persistentvolumeclaims"):
            found[key] = found.get(key, 0) + replicas
    for claim, number in claims:
        asked: dict[str, Any] = (claim.get("resources") or {}).get("requests") or {}
        storage = number * quantity(asked.get("storage", "0"))
        found["requests.storage"] = found.get("requests.storage", 0) + storage
    return found
