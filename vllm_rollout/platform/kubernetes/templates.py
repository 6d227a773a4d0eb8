"""Pod templates of rendered objects, and what else decides who answers and what is loaded.

A pod template counts wherever it stands. Beside them count ConfigMaps that no pod names, volumes,
where Services and routes send requests, and all of an object of a kind that may run a server.
"""

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from vllm_rollout.model.deployment import canonical_digest

Json = Mapping[str, Any]
_Key = tuple[str, str]

HOOK = "helm.sh/hook"
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
"""API groups (beside the core's) of whose objects only pod templates and `_BACKENDS` count. Of an
object of any other group all counts."""
_BACKENDS = (
    *("backendRefs", "backendRef", "backend", "defaultBackend", "alternateBackends", "to"),
    *("route", "destination", "subsets", "endpoints", "mirror", "mirrors", "services"),
)
"""Keys under which routes and endpoints name what they send requests to."""
_BACKEND_GROUPS = (
    *("networking.k8s.io", "gateway.networking.k8s.io", "networking.istio.io", "traefik.io"),
    *("route.openshift.io", "discovery.k8s.io"),
)
_ROUTES_NOTHING = ("NetworkPolicy",)
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
_OF_NO_WEIGHTS = (
    *("capacity", "claimRef", "storageClassName", "nodeAffinity", "mountOptions"),
    "persistentVolumeReclaimPolicy",
)
"""Parts of a PersistentVolume that are the environment's, as those of its claims are."""
_OWN_KEYS = "vllm-rollout/"
_FIELD = re.compile(r"metadata\.(labels|annotations)(?:\['([^']*)'\])?|spec\.(\w+)")


@dataclass(frozen=True, slots=True)
class Template:
    """One pod template of a rendered object; `tree` has its references resolved.

    Or, where `runs` is False, what counts of an object that runs nothing itself.
    """

    workload: str
    tree: Json
    runs: bool = True


@dataclass(frozen=True, slots=True)
class _Made:
    """The chart's objects by kind and name, and which of them a pod refers to."""

    objects: Mapping[_Key, Json]
    named: set[_Key] = field(default_factory=set)


def templates_of(objects: Iterable[Json]) -> Iterator[Template]:
    """Yield each pod template of the objects that serve, and what else of them counts."""
    objects = list(one_by_one(objects))
    made = _Made({(str(each.get("kind")), _name(each)): each for each in objects})
    running = [each for each in objects if not _is_off(each)]
    for each in running:
        yield from _pods_of(each, made)
    for each in running:
        kind, name = str(each.get("kind")), _name(each)
        if (kind, name) not in made.named and (tree := _beside(kind, each)):
            yield Template(f"{kind} {name}{_where(each)}", {kind: tree}, runs=False)


def _pods_of(each: Json, made: _Made) -> Iterator[Template]:
    kind, name = str(each.get("kind")), _name(each)
    if kind == "Pod":
        yield Template(f"Pod {name}", _resolved(_with_fields(each), made))
        return
    found: list[tuple[str, Json]] = []
    rest = {
        key: _without_templates(value, key, found)
        for key, value in each.items()
        if key not in ("metadata", "status")
    }
    for place, tree in found:
        more = {}
        if kind == "StatefulSet":
            more = {"volumeClaimTemplates": each["spec"].get("volumeClaimTemplates")}
        where = f"{kind} {name}" if len(found) == 1 else f"{kind} {name} {place}"
        yield Template(where + _where(each), _resolved({**_with_fields(tree), **more}, made))
    group = _group(each)
    if group and kind not in _WORKLOADS and group not in _SERVE_NOTHING:
        spec = {"spec": rest.get("spec") or {}}
        yield Template(f"{kind} {name} itself", _resolved({kind: spec}, made))


def hook_of(each: Json) -> str | None:
    """When Helm runs the object as a hook (`pre-install,pre-upgrade`); None for one of the release
    itself."""
    annotations = (each.get("metadata") or {}).get("annotations") or {}
    return str(annotations[HOOK]) if HOOK in annotations else None


def without_hooks(objects: Iterable[Json]) -> list[Json]:
    """The objects that belong to a release, as `helm get manifest` gives them."""
    return [each for each in objects if hook_of(each) is None]


def workloads_of(objects: Iterable[Json]) -> list[Json]:
    """The objects of a release that run pods for as long as it stands."""
    return [
        each
        for each in one_by_one(without_hooks(objects))
        if each.get("kind", "Job") not in ("Job", "CronJob") and pod_templates(each)
        if each["kind"] in _WORKLOADS or _group(each) not in _SERVE_NOTHING
    ]


def pod_templates(each: Json) -> list[Json]:
    """The pod templates in an object, wherever they stand; of a Pod itself."""
    found: list[tuple[str, Json]] = []
    _without_templates(each, "", found)
    return [template for _, template in found]


def pinned_images(objects: Sequence[Json]) -> str | None:
    """Digests of the images of the servers' containers; None unless each is named by one."""
    digests = {
        str(container.get("image", "")).partition("@")[2]
        for each in templates_of(objects)
        for container in (each.tree.get("spec") or {}).get("containers") or ()
    }
    return ", ".join(sorted(digests)) if digests and all(digests) else None


def one_by_one(objects: Iterable[Json]) -> Iterator[Json]:
    """Yield the objects; those of a `List` each."""
    for each in objects:
        if str(each.get("kind")).endswith("List") and isinstance(each.get("items"), list):
            yield from one_by_one(each["items"])
        else:
            yield each


def _name(each: Json) -> str:
    about = each.get("metadata") or {}
    return str(about.get("name") or about.get("generateName"))


def _group(each: Json) -> str:
    """The object's API group; empty for the core's."""
    return str(each.get("apiVersion", "")).rpartition("/")[0]


def _where(each: Json) -> str:
    namespace = (each.get("metadata") or {}).get("namespace")
    return f" in {namespace}" if namespace else ""


def _is_off(each: Json) -> bool:
    """Return True for what `helm test` runs, and for a workload without replicas."""
    hooks = hook_of(each)
    if hooks and all(hook.strip() in ("test", "test-success") for hook in hooks.split(",")):
        return True
    return each.get("kind") in _WORKLOADS and (each.get("spec") or {}).get("replicas", 1) == 0


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


def _with_fields(template: Json) -> Json:
    """The pod template, and under `fieldRef` those of its fields that its containers read."""
    about = template.get("metadata") or {}
    read = {}
    for path in _field_paths(template["spec"]):
        if (match := _FIELD.fullmatch(path)) is None:
            continue
        section, key, of_spec = match.groups()
        if of_spec:
            read[path] = template["spec"].get(of_spec)
            continue
        held = {k: v for k, v in (about.get(section) or {}).items() if not k.startswith(_OWN_KEYS)}
        read[path] = held if key is None else held.get(key)
    return {
        **{key: template[key] for key in ("metadata", "spec") if key in template},
        **({"fieldRef": read} if read else {}),
    }


def _field_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(path := value.get("fieldPath"), str):
            yield path
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _field_paths(each)


def _resolved(value: Any, made: _Made, *, mounted: bool = False) -> Any:
    """`value` with the content of those objects of the chart that it refers to."""
    if isinstance(value, list):
        return [_resolved(each, made, mounted=mounted) for each in value]
    if not isinstance(value, Mapping):
        return value
    result = {}
    for key, inner in value.items():
        result[key] = _resolved(inner, made, mounted=mounted or key == "volumes")
        kind = _REFERENCES.get(str(key))
        if kind and isinstance(inner, Mapping):
            label = next((n for n in _NAMES if isinstance(inner.get(n), str)), "")
            target = made.objects.get((kind, str(inner.get(label))))
            if target is not None:
                made.named.add((kind, _name(target)))
                kept = {k: v for k, v in result[key].items() if kind != "ConfigMap" or k != label}
                result[key] = {**kept, "content": _content(kind, target, mounted=mounted)}
    return result


def _content(kind: str, target: Json, *, mounted: bool) -> Json:
    if kind == "ConfigMap":
        return {key: target[key] for key in ("data", "binaryData") if target.get(key)}
    if kind == "Secret":
        plain, encoded = target.get("stringData") or {}, target.get("data") or {}
        keys = {"keys": sorted({str(key) for key in chain(encoded, plain)})}
        if not mounted:
            return keys
        texts = {key: base64.b64encode(str(text).encode()).decode() for key, text in plain.items()}
        return {**keys, "digest": canonical_digest({**encoded, **texts})}
    spec = target.get("spec") or {}
    return {key: spec[key] for key in _WHAT_A_CLAIM_BINDS if key in spec}


def _beside(kind: str, each: Json) -> Json:
    """The part that counts of an object that runs no pods; empty for most."""
    spec = each.get("spec") or {}
    if kind in ("ConfigMap", "PersistentVolumeClaim"):
        return _content(kind, each, mounted=False)
    if kind == "PersistentVolume":
        return {key: value for key, value in spec.items() if key not in _OF_NO_WEIGHTS}
    if kind == "Service":
        ports = {
            str(port.get("name", number)): port["targetPort"]
            for number, port in enumerate(spec.get("ports") or ())
            if "targetPort" in port
        }
        found = {key: spec[key] for key in ("selector", "externalName") if spec.get(key)}
        return {**found, **({"targetPort": ports} if ports else {})}
    if kind == "Endpoints" or (_group(each) in _BACKEND_GROUPS and kind not in _ROUTES_NOTHING):
        return _backends({key: value for key, value in each.items() if key != "metadata"}) or {}
    return {}


def _backends(value: Any) -> Any:
    """The parts of `value` under `_BACKENDS`; None where there are none."""
    if isinstance(value, Mapping):
        inner = {k: v if k in _BACKENDS else _backends(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v} or None
    if isinstance(value, list):
        return [found for each in value if (found := _backends(each))] or None
    return None
