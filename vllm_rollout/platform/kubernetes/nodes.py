"""Scheduling of pods: their requests, the room on nodes, and why a node refuses a pod."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from vllm_rollout.model.symptoms import NodeRoom
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.platform.kubernetes.templates import Json

_ENDED = ("Succeeded", "Failed")


class Nodes:
    """Nodes and the pods on them, listed at the first question and once for all that follow.

    Raises: as `KubernetesApi.doing`.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    @cached_property
    def nodes(self) -> list[Json]:
        """Every node, by name."""
        with self._api.doing("list", "nodes"):
            found = self._api.core.list_node(_request_timeout=TIMEOUT_SECONDS).items
        plain: list[Json] = self._api.core.api_client.sanitize_for_serialization(found)
        return sorted(plain, key=lambda each: str(each["metadata"]["name"]))

    @cached_property
    def pods(self) -> list[Json]:
        """Every pod that holds resources of a node."""
        with self._api.doing("list", "pods in all namespaces"):
            found = self._api.core.list_pod_for_all_namespaces(_request_timeout=TIMEOUT_SECONDS)
        plain: list[Json] = self._api.core.api_client.sanitize_for_serialization(found.items)
        return [pod for pod in plain if pod["status"].get("phase") not in _ENDED]

    def rooms(self, resource: str, pod_spec: Json) -> tuple[NodeRoom, ...]:
        """Each node's room for `resource`; one that would refuse the pod says so."""
        used = self.requested()
        return tuple(
            NodeRoom(
                node=node["metadata"]["name"],
                allocatable=quantity(node["status"]["allocatable"].get(resource, "0")),
                requested=used[node["metadata"]["name"]].get(resource, 0),
                refused=refusal(node, pod_spec),
            )
            for node in self.nodes
        )

    def requested(
        self, of: Callable[[Json], bool] = lambda _pod: True
    ) -> defaultdict[str, defaultdict[str, float]]:
        """Return the requests of the pods that `of` accepts, by node and resource."""
        total: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        for pod in filter(of, self.pods):
            on_node = total[pod["spec"].get("nodeName", "")]
            for resource, amount in requests_of(pod["spec"]).items():
                on_node[resource] += amount
            on_node["pods"] += 1
        return total


def requests_of(pod_spec: Json) -> dict[str, float]:
    """Return a pod's requests as the scheduler counts them, in base units; a limit alone counts."""
    return _counted(pod_spec, ("limits", "requests"))


def with_defaults(pod_spec: Json, limit_ranges: Iterable[Json]) -> Json:
    """The pod with what the API server fills in: a limit is a request too, and the LimitRanges'
    defaults stand for what a container does not state."""
    items = [
        item
        for each in limit_ranges
        for item in (each.get("spec") or {}).get("limits") or ()
        if item.get("type") == "Container"
    ]

    def filled(container: Json) -> Json:
        resources = container.get("resources") or {}
        limits = dict(resources.get("limits") or {})
        requests = {**limits, **(resources.get("requests") or {})}
        for item in items:
            limits = {**(item.get("default") or {}), **limits}
            requests = {**(item.get("defaultRequest") or {}), **requests}
        return {**container, "resources": {**resources, "limits": limits, "requests": requests}}

    kinds = {
        kind: pod_spec[kind] for kind in ("containers", "initContainers") if pod_spec.get(kind)
    }
    return {**pod_spec, **{kind: [filled(c) for c in found] for kind, found in kinds.items()}}


def limits_of(pod_spec: Json) -> dict[str, float]:
    """The limits of a pod's containers together, in base units."""
    return _counted(pod_spec, ("limits",))


def _counted(pod_spec: Json, kinds: Iterable[str]) -> dict[str, float]:
    """Containers and sidecars run together; other init containers one by one, before them."""
    together: defaultdict[str, float] = defaultdict(float)
    first: defaultdict[str, float] = defaultdict(float)
    inits = pod_spec.get("initContainers") or ()
    sidecars = [each for each in inits if each.get("restartPolicy") == "Always"]
    for container in (*pod_spec["containers"], *sidecars):
        for name, amount in _amounts(container, kinds):
            together[name] += amount
    for container in inits:
        for name, amount in _amounts(container, kinds):
            first[name] = max(first[name], amount)
    return {name: max(together[name], first[name]) for name in {*together, *first}}


def _amounts(container: Json, kinds: Iterable[str]) -> list[tuple[str, float]]:
    resources = container.get("resources") or {}
    asked = {k: v for kind in kinds for k, v in (resources.get(kind) or {}).items()}
    return [(name, quantity(text)) for name, text in asked.items()]


def quantity(text: Any) -> float:
    """A Kubernetes quantity (`500m`, `24Gi`) in base units."""
    # Imported late: the client takes a second, and most commands have no use for it.
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))  # type: ignore[no-untyped-call]


def not_selected(node: Json, pod_spec: Json) -> str:
    """Return the rule of the pod by which it selects other nodes; empty when it selects this."""
    labels = node["metadata"].get("labels") or {}
    for key, value in (pod_spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"the selector {key}={value}"
    terms = _required_terms(pod_spec)
    if terms and not any(_matches(term, node) for term in terms):
        return "the pod's node affinity"
    return ""


def refusal(node: Json, pod_spec: Json) -> str:
    """Return why the node takes no such pod, whatever its room; empty when it does."""
    if rule := not_selected(node, pod_spec):
        return rule
    if node["spec"].get("unschedulable"):
        return "it is cordoned"
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not any(
            _tolerates(toleration, taint) for toleration in pod_spec.get("tolerations") or ()
        ):
            return f"the taint {taint['key']}"
    return ""


def unconsidered(pod_spec: Json) -> str:
    """The pod's rules on where it may run that `refusal` does not look at; empty when none."""
    affinity = pod_spec.get("affinity") or {}
    found = [
        kind
        for kind in ("podAffinity", "podAntiAffinity")
        if (affinity.get(kind) or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    ]
    if any(
        constraint.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"
        for constraint in pod_spec.get("topologySpreadConstraints") or ()
    ):
        found.append("topologySpreadConstraints")
    if pod_spec.get("resourceClaims"):
        found.append("resourceClaims")
    return ", ".join(found)


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    same = toleration.get("value", "") == taint.get("value", "")
    return same or toleration.get("operator") == "Exists"


def _required_terms(pod_spec: Json) -> list[Json]:
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: list[Json] = required.get("nodeSelectorTerms") or []
    return terms


def _matches(term: Json, node: Json) -> bool:
    """A term matches where all of its expressions do; an empty one matches no node."""
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    expressions = [(each, labels) for each in term.get("matchExpressions") or ()]
    expressions += [(each, fields) for each in term.get("matchFields") or ()]
    return bool(expressions) and all(_holds(each, having) for each, having in expressions)


def _holds(expression: Json, having: Mapping[str, str]) -> bool:
    value, wanted = having.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    try:
        number, bound = int(value or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return number > bound if expression["operator"] == "Gt" else number < bound
