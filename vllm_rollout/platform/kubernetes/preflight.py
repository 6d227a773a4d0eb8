"""The facts about a build before Helm deploys it: its chart, the cluster's room, what it needs."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vllm_rollout.deployment import Deployment
from vllm_rollout.errors import DeployError, UsageError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.build import make_build
from vllm_rollout.platform.kubernetes.chart import load_chart, merged, overlay
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.needs import needed_by, pull_credentials, secret_value
from vllm_rollout.platform.kubernetes.nodes import (
    Nodes,
    limits_of,
    quantity,
    refusal,
    requests_of,
    unconsidered,
)
from vllm_rollout.platform.kubernetes.pods import INSTANCE_LABEL
from vllm_rollout.preflight import (
    ContainerImage,
    Demand,
    ModelSource,
    NodeSpace,
    Quota,
    Reference,
    Rendering,
    Room,
    quota_use,
)
from vllm_rollout.yaml_file import read_mapping

_WORKLOADS = ("Deployment", "StatefulSet")
_HOOK = "helm.sh/hook"
_NOT_OURS = ("BestEffort", "Terminating")
"""Scopes of a quota that pods of a Deployment with requests never fall under."""


class KubernetesPreflight:
    """The `Preflight` of one build: `values` in the chart folder, with `capacity` pods.

    What takes long is asked once: the rendering, the nodes.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        values: Mapping[str, Any],
        capacity: int,
        chart: Path,
        overlays: Path,
        helm: Helm,
        api: KubernetesApi,
    ) -> None:
        self._deployment = deployment
        self._values = dict(values)
        self._capacity = capacity
        self._chart, self._overlays = chart, overlays
        self._helm = helm
        self._api = api
        self._nodes = Nodes(api)

    def lint(self) -> str:
        """What `helm lint --strict` complains of; empty when it is content."""
        try:
            with self._files() as files:
                self._helm.lint(self._chart, values=files)
        except (UsageError, DeployError) as error:
            return str(error)
        return ""

    def rendering(self) -> Rendering:
        """The objects of `helm template`."""
        return self._rendering

    def values_problem(self) -> str:
        """What is wrong with the values or the overlay; empty when nothing is."""
        try:
            make_build(self._chart, self._deployment, self._values)
            overlay(self._overlays, self._deployment.environment)
        except UsageError as error:
            return f"{error}. {error.remedy}".strip()
        return ""

    def room(self) -> Room:
        """What the rollout needs of the nodes, and what they have."""
        everything = self._nodes.requested()
        own = self._nodes.requested(self._is_own)
        return Room(
            demands=tuple(
                replace(demand, refused=self._refusals(workload))
                for demand, workload in zip(self.demands(), self._workloads, strict=True)
            ),
            nodes=tuple(self._space(node, everything, own) for node in self._nodes.nodes),
            existing=sum(map(self._is_own, self._nodes.pods)),
        )

    def demands(self) -> list[Demand]:
        """The pods that the rollout runs, without a look at the nodes."""
        return list(map(_demand, self._workloads))

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

    def images(self) -> list[ContainerImage]:
        """Every image that the pods run, each once."""
        found: dict[str, ContainerImage] = {}
        for workload in self._workloads:
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
        made = {
            (each.get("kind", ""), each["metadata"]["name"]) for each in self._rendering.objects
        }
        specs = [workload["spec"]["template"]["spec"] for workload in self._workloads]
        return needed_by(self._api, self._deployment.namespace, specs, made=made)

    @cached_property
    def _rendering(self) -> Rendering:
        try:
            with self._files() as files:
                objects = self._helm.template(
                    self._deployment.release,
                    self._chart,
                    namespace=self._deployment.namespace,
                    values=files,
                )
        except (UsageError, DeployError) as error:
            return Rendering(complaint=str(error))
        return Rendering(objects=tuple(objects))

    @property
    def _workloads(self) -> list[Mapping[str, Any]]:
        """What runs pods for as long as the release stands.

        Raises:
            UsageError: the chart does not render, or runs nothing.
        """
        rendering = self._rendering
        found = [
            each
            for each in rendering.objects
            if each.get("kind") in _WORKLOADS
            and _HOOK not in (each["metadata"].get("annotations") or {})
            and each["spec"].get("replicas", 1)
        ]
        if not found:
            reason = rendering.complaint or "no Deployment and no StatefulSet among its objects"
            raise UsageError(
                f"what the pods need is unknown, the chart makes none: {reason}",
                remedy="Correct the chart or its values first.",
            )
        return found

    @contextmanager
    def _files(self) -> Iterator[Sequence[Path]]:
        """The values files of the whole release, as Helm gets them when it is deployed."""
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            build, whole = Path(folder) / "build.yaml", Path(folder) / "rollout.yaml"
            build.write_text(yaml.safe_dump(self._values, sort_keys=False, allow_unicode=True))
            whole.write_text(yaml.safe_dump({"replicaCount": self._capacity}))
            yield [build, overlay(self._overlays, self._deployment.environment), whole]

    def _refusals(self, workload: Mapping[str, Any]) -> dict[str, str]:
        """Why nodes, by name, take no pod of the workload; those that take it are left out."""
        spec = workload["spec"]["template"]["spec"]
        found = {node["metadata"]["name"]: refusal(node, spec) for node in self._nodes.nodes}
        return {name: why for name, why in found.items() if why}

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
            and _HOOK not in (pod["metadata"].get("annotations") or {})
        )

    def _own_use(self) -> dict[str, float]:
        """What a quota counts of the pods that the release runs now."""
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


def _demand(workload: Mapping[str, Any]) -> Demand:
    spec = workload["spec"]["template"]["spec"]
    pods = int(workload["spec"].get("replicas", 1))
    return Demand(
        workload=f"{workload['kind']} {workload['metadata']['name']}",
        pods=pods,
        surge=_surge(workload, pods),
        requests={**requests_of(spec), "pods": 1.0},
        limits=limits_of(spec),
        unconsidered=unconsidered(spec),
    )


def _surge(workload: Mapping[str, Any], pods: int) -> int:
    """How many pods a rolling update runs beyond `pods`; Kubernetes rounds shares up."""
    if workload["kind"] != "Deployment":
        return 0
    strategy = workload["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0
    surge = (strategy.get("rollingUpdate") or {}).get("maxSurge", "25%")
    if isinstance(surge, str) and surge.endswith("%"):
        return math.ceil(pods * float(surge[:-1]) / 100)
    return int(surge)


def _amounts(texts: Mapping[str, Any] | None) -> dict[str, float]:
    return {key: quantity(text) for key, text in (texts or {}).items()}
