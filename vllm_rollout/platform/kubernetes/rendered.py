"""Objects that a chart makes of a release's values, before anything is deployed."""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.model.preflight_facts import Demand, Rendering
from vllm_rollout.platform.kubernetes.chart import admit, copied, load_chart
from vllm_rollout.platform.kubernetes.composition import OWN_VALUES
from vllm_rollout.platform.kubernetes.helm import Helm
from vllm_rollout.platform.kubernetes.nodes import limits_of, requests_of, unconsidered
from vllm_rollout.platform.kubernetes.value_files import ValueFiles, write_values

Json = Mapping[str, Any]

HOOK = "helm.sh/hook"
_COUNTED = ("Deployment", "StatefulSet")
_WORKLOADS = (
    *("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController"),
    *("Job", "CronJob", "Pod"),
)
_SERVE_NOTHING = (
    *("apps", "autoscaling", "policy", "batch", "networking.k8s.io", "gateway.networking.k8s.io"),
    *("rbac.authorization.k8s.io", "storage.k8s.io", "scheduling.k8s.io", "apiextensions.k8s.io"),
    *("admissionregistration.k8s.io", "coordination.k8s.io", "discovery.k8s.io"),
    *("monitoring.coreos.com", "keda.sh", "networking.istio.io", "security.istio.io"),
    *("cert-manager.io", "external-secrets.io", "bitnami.com", "snapshot.storage.k8s.io"),
    *("node.k8s.io", "karpenter.sh", "traefik.io", "route.openshift.io", "networking.gke.io"),
)
"""API groups (beside the core's) whose objects run nothing, unless they are `_WORKLOADS`. Of an
object of any other group all counts."""
_REFERENCES = {
    "configMap": "ConfigMap",
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secret": "Secret",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
    "persistentVolumeClaim": "PersistentVolumeClaim",
}
_NAMES = ("name", "secretName", "claimName")
_WHAT_A_CLAIM_BINDS = ("dataSource", "dataSourceRef", "selector", "volumeMode", "volumeName")


@dataclass(frozen=True, slots=True)
class Template:
    """One pod template of a rendered object; `tree` has its references resolved."""

    workload: str
    tree: Json


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The chart with the values of the whole release, as Helm gets them when it is deployed."""

    chart: Path
    files: ValueFiles
    deployment: Deployment
    values: Mapping[str, Any]
    capacity: int
    helm: Helm

    def complaint(self) -> str:
        """Return the complaints of `helm lint --strict`; empty when there are none."""
        try:
            with self._written() as (chart, files):
                self.helm.lint(chart, values=files)
        except (UsageError, DeployError) as error:
            return str(error)
        return ""

    @cached_property
    def rendering(self) -> Rendering:
        """The objects of `helm template`, or why there are none; made once."""
        try:
            with self._written() as (chart, files):
                objects = self.helm.template(
                    self.deployment.release,
                    chart,
                    namespace=self.deployment.namespace,
                    values=files,
                )
        except (UsageError, DeployError) as error:
            return Rendering(complaint=str(error))
        return Rendering(objects=tuple(objects))

    @property
    def workloads(self) -> list[Mapping[str, Any]]:
        """The objects that run pods for as long as the release stands.

        Raises:
            UsageError: the chart does not render, or runs nothing.
        """
        found = self._running
        if not found:
            complaint = self.rendering.complaint
            reason = complaint or "no Deployment and no StatefulSet among its objects"
            raise UsageError(
                f"what the pods need is unknown, the chart makes none: {reason}",
                remedy="Correct the chart or its values first.",
            )
        return found

    def count_problem(self) -> str:
        """Return where the chart and the policy differ in the number of pods; empty if they agree.

        Empty for a chart that renders no pods, and where an autoscaler owns the number.
        """
        kinds = {each.get("kind") for each in self.rendering.objects}
        pods = sum(int(each["spec"].get("replicas", 1)) for each in self._running)
        if not self._running or "HorizontalPodAutoscaler" in kinds or pods == self.capacity:
            return ""
        return (
            f"the chart makes {pods} pods where the policy has replicas: {self.capacity}. The "
            "number must come from the chart's value replicaCount"
        )

    @property
    def _running(self) -> list[Mapping[str, Any]]:
        """The same; none where there is none."""
        return [
            each
            for each in self.rendering.objects
            if each.get("kind") in _COUNTED
            and HOOK not in (each["metadata"].get("annotations") or {})
            and each["spec"].get("replicas", 1)
        ]

    @contextmanager
    def _written(self) -> Iterator[tuple[Path, Sequence[Path]]]:
        """The chart and the values files, as Helm gets them when the release is deployed."""
        with tempfile.TemporaryDirectory(prefix="vllm-rollout-") as folder:
            chart = copied(self.chart, Path(folder))
            admit(chart, OWN_VALUES)
            files = self.files.write(Path(folder), load_chart(chart), self.deployment, self.values)
            whole = write_values(Path(folder) / "revision.yaml", {"replicaCount": self.capacity})
            yield chart, [*files, whole]


def demand_of(workload: Mapping[str, Any]) -> Demand:
    """The pods that a workload runs, and what each asks for."""
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
    """Return how many pods a rolling update runs beyond `pods`; Kubernetes rounds shares up."""
    if workload["kind"] != "Deployment":
        return 0
    strategy = workload["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0
    surge = (strategy.get("rollingUpdate") or {}).get("maxSurge", "25%")
    if isinstance(surge, str) and surge.endswith("%"):
        return math.ceil(pods * float(surge[:-1]) / 100)
    return int(surge)


def templates_of(objects: Iterable[Json]) -> Iterator[Template]:
    """Yield each pod template of the objects that serve, and what else of them counts."""
    objects = list(_one_by_one(objects))
    made = {(str(each.get("kind")), _name(each)): each for each in objects}
    for each in objects:
        kind, name = str(each.get("kind")), _name(each)
        if not _serves(each):
            continue
        if kind == "Pod":
            yield Template(f"Pod {name}", _resolved({"spec": each["spec"]}, made))
            continue
        found: list[tuple[str, Json]] = []
        rest = _without_templates(each.get("spec") or {}, "spec", found)
        for place, tree in found:
            more = {}
            if kind == "StatefulSet":
                more = {"volumeClaimTemplates": each["spec"].get("volumeClaimTemplates")}
            where = f"{kind} {name}" if len(found) == 1 else f"{kind} {name} {place}"
            if namespace := each["metadata"].get("namespace"):
                where += f" in {namespace}"
            yield Template(where, _resolved({**tree, **more}, made))
        if kind not in _WORKLOADS:
            yield Template(f"{kind} {name} itself", _resolved({kind: {"spec": rest}}, made))


def without_hooks(objects: Iterable[Json]) -> list[Json]:
    """The objects that belong to a release, as `helm get manifest` gives them."""
    return [o for o in objects if HOOK not in ((o.get("metadata") or {}).get("annotations") or {})]


def pinned_images(objects: Sequence[Json]) -> str | None:
    """Digests of the images of the servers' containers; None unless each is named by one."""
    digests = {
        str(container.get("image", "")).partition("@")[2]
        for each in templates_of(objects)
        for container in (each.tree.get("spec") or {}).get("containers") or ()
    }
    return ", ".join(sorted(digests)) if digests and all(digests) else None


def _one_by_one(objects: Iterable[Json]) -> Iterator[Json]:
    """Yield the objects; those of a `List` each."""
    for each in objects:
        if str(each.get("kind")).endswith("List") and isinstance(each.get("items"), list):
            yield from _one_by_one(each["items"])
        else:
            yield each


def _name(each: Json) -> str:
    about = each.get("metadata") or {}
    return str(about.get("name") or about.get("generateName"))


def _serves(each: Json) -> bool:
    kind = str(each.get("kind"))
    annotations = (each.get("metadata") or {}).get("annotations") or {}
    hooks = str(annotations.get(HOOK, ""))
    if hooks and all(hook.strip() in ("test", "test-success") for hook in hooks.split(",")):
        return False
    if kind in _WORKLOADS:
        return bool((each.get("spec") or {}).get("replicas", 1) != 0)
    group, slash, _ = str(each.get("apiVersion", "")).rpartition("/")
    return bool(slash) and group not in _SERVE_NOTHING


def _without_templates(value: Any, place: str, found: list[tuple[str, Json]]) -> Any:
    """Return `value` without its pod templates, which are added to `found` with their places."""
    if isinstance(value, Mapping):
        spec = value.get("spec")
        if isinstance(spec, Mapping) and isinstance(spec.get("containers"), list):
            found.append((place, {k: value[k] for k in ("metadata", "spec") if k in value}))
            return None
        return {k: _without_templates(v, f"{place}.{k}", found) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_templates(v, f"{place}[{n}]", found) for n, v in enumerate(value)]
    return value


def _resolved(value: Any, made: Mapping[tuple[str, str], Json]) -> Any:
    """`value` with the content of those objects of the chart that it refers to."""
    if isinstance(value, list):
        return [_resolved(each, made) for each in value]
    if not isinstance(value, Mapping):
        return value
    result = {}
    for key, inner in value.items():
        result[key] = _resolved(inner, made)
        kind = _REFERENCES.get(str(key))
        if kind and isinstance(inner, Mapping):
            label = next((n for n in _NAMES if isinstance(inner.get(n), str)), "")
            target = made.get((kind, str(inner.get(label))))
            if target is not None:
                kept = {k: v for k, v in result[key].items() if kind != "ConfigMap" or k != label}
                result[key] = {**kept, "content": _content(kind, target)}
    return result


def _content(kind: str, target: Json) -> Json:
    if kind == "ConfigMap":
        return {key: target[key] for key in ("data", "binaryData") if target.get(key)}
    if kind == "Secret":
        keys = chain(target.get("data") or {}, target.get("stringData") or {})
        return {"keys": sorted({str(key) for key in keys})}
    spec = target.get("spec") or {}
    return {key: spec[key] for key in _WHAT_A_CLAIM_BINDS if key in spec}
