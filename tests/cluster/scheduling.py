"""Where a pod fits, told as kube-scheduler tells it: GPUs, CPU, memory, taints, node selectors."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kubernetes.utils import parse_quantity

Json = Mapping[str, Any]


def choose_node(pod: Json, nodes: Sequence[Json], pods: Iterable[Json]) -> tuple[str, str]:
    """(name of a node with room, "") or ("", why no node has)."""
    bound = [other for other in pods if other["spec"].get("nodeName") and not _ended(other)]
    reasons: Counter[str] = Counter()
    for node in nodes:
        reason = _obstacle(pod, node, bound)
        if not reason:
            return str(node["metadata"]["name"]), ""
        reasons[reason] += 1
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return "", f"0/{len(nodes)} nodes are available: {told}."


def requests(pod: Json) -> Counter[str]:
    """What the containers of a pod ask for, in base units (cores, bytes, pieces)."""
    total: Counter[str] = Counter()
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, quantity in asked.items():
            total[name] += parse_quantity(quantity)
    return total


def _obstacle(pod: Json, node: Json, bound: Sequence[Json]) -> str:
    spec, labels = pod["spec"], node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return "node(s) didn't match Pod's node affinity/selector"
    for taint in node["spec"].get("taints") or ():
        if not any(_tolerates(t, taint) for t in spec.get("tolerations") or ()):
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    used: Counter[str] = Counter()
    for other in bound:
        if other["spec"]["nodeName"] == node["metadata"]["name"]:
            used.update(requests(other))
    for resource, amount in sorted(requests(pod).items()):
        room = parse_quantity(node["status"]["allocatable"].get(resource, "0")) - used[resource]
        if amount > room:
            return f"Insufficient {resource}"
    return ""


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("key") not in (None, taint["key"]):
        return False
    if toleration.get("effect") not in (None, taint["effect"]):
        return False
    exists = toleration.get("operator", "Equal") == "Exists"
    return exists or toleration.get("value", "") == taint.get("value", "")


def _ended(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
