"""Preflight facts about a build before Helm deploys it: chart, room in the cluster, needs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm_rollout.model.deployment import Canary, Deployment
from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError
from vllm_rollout.model.preflight_facts import (
    Admission,
    ContainerImage,
    Demand,
    ModelSource,
    NewObjects,
    NodeSpace,
    Quota,
    Reference,
    Refusal,
    Rendering,
    Room,
    quota_use,
)
from vllm_rollout.platform.kubernetes.admission import NO_RIGHT, admission
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.build import Builds
from vllm_rollout.platform.kubernetes.chart import load_chart, make_build, merged, overlay
from vllm_rollout.platform.kubernetes.command import WebhookError
from vllm_rollout.platform.kubernetes.needs import needed_by, pull_credentials, secret_value
from vllm_rollout.platform.kubernetes.nodes import (
    Nodes,
    limits_of,
    not_selected,
    quantity,
    refusal,
    requests_of,
)
from vllm_rollout.platform.kubernetes.pods import INSTANCE_LABEL
from vllm_rollout.platform.kubernetes.ramp_preflight import Ramp, named
from vllm_rollout.platform.kubernetes.rendered import Rendered, demand_of
from vllm_rollout.platform.kubernetes.templates import hook_of
from vllm_rollout.yaml_file import read_mapping

_NOT_OURS = ("BestEffort", "Terminating")
"""Scopes of a quota that pods of a Deployment with requests never fall under."""


class KubernetesPreflight:
    """The `Preflight` of one build: `values` in the chart folder, with `capacity` pods.

    `ramp` makes of the whole release how it comes to them. What takes long is asked once: the
    renderings, the nodes.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        values: Mapping[str, Any],
        capacity: int,
        builds: Builds,
        api: KubernetesApi,
        ramp: Callable[[Rendered], Ramp],
    ) -> None:
        self._deployment = deployment
        self._values = dict(values)
        self._builds = builds
        self._chart, self._overlays = builds.chart, builds.files.overlays
        self._rendered = Rendered(
            chart=builds.chart,
            files=builds.files,
            deployment=deployment,
            values=self._values,
            capacity=capacity,
            helm=builds.helm,
        )
        self._ramp = ramp(self._rendered)
        self._api = api
        self._nodes = Nodes(api)

    def lint(self) -> str:
        """Return the complaints of `helm lint --strict`; empty when there are none."""
        return self._rendered.complaint()

    def rendering(self) -> Rendering:
        """The objects of `helm template`."""
        return self._rendered.rendering

    def values_problem(self) -> str:
        """Return the error in the values or the overlay; empty when there is none."""
        try:
            make_build(self._chart, self._deployment, self._values)
            overlay(self._overlays, self._deployment.environment)
            if not self._rendered.rendering.complaint:  # which is a check of its own
                self._builds.make(self._deployment, self._values)
        except (UsageError, DeployError) as error:
            return f"{error}. {error.remedy}".strip()
        return self._rendered.count_problem()

    def room(self) -> Room:
        """Return the resources that the rollout needs of the nodes, and those that they have."""
        everything = self._nodes.requested()
        own = self._nodes.requested(self._is_own)
        return Room(
            demands=tuple(
                replace(demand, refused=self._refusals(workload), outside=self._outside(workload))
                for demand, workload in zip(self.demands(), self._rendered.workloads, strict=True)
            ),
            nodes=tuple(self._space(node, everything, own) for node in self._nodes.nodes),
            existing=sum(map(self._is_own, self._nodes.pods)),
        )

    def demands(self) -> list[Demand]:
        """Return the pods that the rollout runs, without reading the nodes."""
        return [demand_of(each, self._limit_ranges) for each in self._rendered.workloads]

    @cached_property
    def _limit_ranges(self) -> list[Mapping[str, Any]]:
        namespace = self._deployment.namespace
        with self._api.doing("list", f"limitranges in namespace {namespace}"):
            found = self._api.core.list_namespaced_limit_range(
                namespace, _request_timeout=TIMEOUT_SECONDS
            ).items
        plain: list[Mapping[str, Any]] = self._api.core.api_client.sanitize_for_serialization(found)
        return plain

    def namespace(self) -> str:
        """The namespace's phase; empty when there is none."""
        name = self._deployment.namespace
        try:
            with self._api.doing("get", f"namespaces {name}"):
                found = self._api.core.read_namespace(name, _request_timeout=TIMEOUT_SECONDS)
        except NotFoundError:
            return ""
        return str(found.status.phase or "Unknown")

    def quotas(self) -> list[Quota]:
        """The namespace's quotas that the release's pods fall under."""
        namespace = self._deployment.namespace
        with self._api.doing("list", f"resourcequotas in namespace {namespace}"):
            found = self._api.core.list_namespaced_resource_quota(
                namespace, _request_timeout=TIMEOUT_SECONDS
            ).items
        if not found:
            return []
        own = self._own_use()
        return [
            Quota(
                name=each.metadata.name,
                hard=_amounts(each.status.hard or each.spec.hard),
                used=_amounts(each.status.used),
                own=own,
                unconsidered="its scopeSelector" if each.spec.scope_selector else "",
            )
            for each in found
            if not set(each.spec.scopes or ()) & set(_NOT_OURS)
        ]

    def new_objects(self) -> NewObjects:
        """Objects that the rollout makes, those of the way back included."""
        return self._ramp.new_objects(self._api.paths)

    def admission(self) -> Admission:
        """The answers to the whole release, to what a ramp runs beside it, and to its route."""
        try:
            self._rendered.dry_run()
            objects, patches = self._ramp.objects, self._ramp.patches()
        except (UsageError, DeployError, UnreachableError) as error:
            barred = NO_RIGHT.search(str(error)) is not None
            if isinstance(error, UnreachableError) and not barred:
                raise
            # A chart brings definitions of its own before anything that needs them.
            later = "no matches for kind" in str(error) and (self._chart / "crds").is_dir()
            busy = "is in progress" in str(error) or isinstance(error, WebhookError)
            known = not (barred or later or busy)
            refusal = Refusal(what="the upgrade", reason=str(error), certain=known)
            return Admission(asked=1, refusals=(refusal,))
        return admission(
            self._api,
            objects,
            self._deployment.namespace,
            applies=bool(self._builds.helm.forcing),
            patches=patches,
        )

    def images(self) -> list[ContainerImage]:
        """Every image that the pods run, each once."""
        found: dict[str, ContainerImage] = {}
        for workload in self._rendered.workloads:
            spec = workload["spec"]["template"]["spec"]
            names = [each["name"] for each in spec.get("imagePullSecrets") or ()]
            for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
                reference = container["image"]
                if reference not in found:
                    found[reference] = ContainerImage(
                        reference=reference,
                        credentials=pull_credentials(
                            self._api, self._deployment.namespace, names, reference
                        ),
                    )
        return list(found.values())

    def model(self) -> ModelSource:
        """`model.path` and `model.revision` of the values, and the token the pods get."""
        values = merged(
            merged(load_chart(self._chart).defaults, self._values),
            read_mapping(overlay(self._overlays, self._deployment.environment)),
        )
        model = values.get("model")
        model = model if isinstance(model, dict) else {}
        secret = model.get("tokenSecret") or {}
        token = ""
        if secret.get("name"):
            token = secret_value(
                self._api, self._deployment.namespace, secret["name"], secret.get("key", "")
            )
        return ModelSource(
            path=str(model.get("path") or ""),
            revision=str(model.get("revision") or ""),
            token=token,
            offline=any(
                each.get("name") == "HF_HUB_OFFLINE" and str(each.get("value")) in ("1", "true")
                for each in values.get("extraEnv") or ()
                if isinstance(each, dict)
            ),
        )

    def references(self) -> list[Reference]:
        """Claims, Secrets and ConfigMaps that pods need and the chart does not make."""
        made = {named(each): each for each in self._rendered.rendering.objects}
        # A canary runs beside what serves, which mounts the same.
        beside = 1 if isinstance(self._deployment, Canary) else 0
        pods = [
            (workload["spec"]["template"]["spec"], demand.pods + demand.surge + beside)
            for workload in self._rendered.workloads
            for demand in (demand_of(workload),)
        ]
        return needed_by(self._api, self._deployment.namespace, pods, made=made)

    def _refusals(self, workload: Mapping[str, Any]) -> dict[str, str]:
        """Return why nodes, by name, refuse the workload's pods."""
        spec = workload["spec"]["template"]["spec"]
        found = {node["metadata"]["name"]: refusal(node, spec) for node in self._nodes.nodes}
        return {name: why for name, why in found.items() if why}

    def _outside(self, workload: Mapping[str, Any]) -> frozenset[str]:
        """Return the nodes that the workload's pods do not select."""
        spec = workload["spec"]["template"]["spec"]
        return frozenset(n["metadata"]["name"] for n in self._nodes.nodes if not_selected(n, spec))

    def _space(
        self,
        node: Mapping[str, Any],
        everything: Mapping[str, Mapping[str, float]],
        own: Mapping[str, Mapping[str, float]],
    ) -> NodeSpace:
        name = node["metadata"]["name"]
        used = everything.get(name, {})
        allocatable = _amounts(node["status"].get("allocatable"))
        return NodeSpace(
            node=name,
            free={key: amount - used.get(key, 0) for key, amount in allocatable.items()},
            own=dict(own.get(name, {})),
        )

    def _is_own(self, pod: Mapping[str, Any]) -> bool:
        labels = pod["metadata"].get("labels") or {}
        return (
            pod["metadata"]["namespace"] == self._deployment.namespace
            and labels.get(INSTANCE_LABEL) == self._deployment.release
            and hook_of(pod) is None
        )

    def _own_use(self) -> dict[str, float]:
        """Return what a quota counts of the pods that the release runs now."""
        namespace = self._deployment.namespace
        with self._api.doing("list", f"pods in namespace {namespace}"):
            found = self._api.core.list_namespaced_pod(
                namespace,
                label_selector=f"{INSTANCE_LABEL}={self._deployment.release}",
                _request_timeout=TIMEOUT_SECONDS,
            ).items
        pods = self._api.core.api_client.sanitize_for_serialization(found)
        total: dict[str, float] = {}
        for pod in filter(self._is_own, pods):
            for key, amount in quota_use(
                {**requests_of(pod["spec"]), "pods": 1.0}, limits_of(pod["spec"])
            ).items():
                total[key] = total.get(key, 0) + amount
        return total


def _amounts(texts: Mapping[str, Any] | None) -> dict[str, float]:
    return {key: quantity(text) for key, text in (texts or {}).items()}
