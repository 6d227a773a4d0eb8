"""Served part of rendered objects: the pod templates of their servers, as values by path.

    {"Deployment llama-2-7b-any": {"spec.containers[vllm].args[0]": "/models/llama", …}}

Left out are the paths that an environment may own. A ConfigMap that the chart makes counts where a
pod refers to it, by its content; a Secret by its name and keys. It is what a build is known by.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from vllm_rollout.model.deployment import Deployment, canonical_digest
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.nodes import quantity
from vllm_rollout.platform.kubernetes.rendered import Json, templates_of

Leaves = dict[str, Any]
Served = dict[str, Leaves]
"""Values by path, by object. A path that ends with `[]` has the names, or the number, of a list's
items in order."""

OWNED_BY_ENVIRONMENT = (
    "metadata",
    "spec.nodeSelector",
    "spec.nodeName",
    "spec.affinity",
    "spec.tolerations",
    "spec.topologySpreadConstraints",
    "spec.priorityClassName",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.imagePullSecrets",
    "spec.terminationGracePeriodSeconds",
    "spec.containers[*].startupProbe",
    "spec.containers[*].readinessProbe",
    "spec.containers[*].livenessProbe",
    "spec.initContainers[*].startupProbe",
    "spec.initContainers[*].readinessProbe",
    "spec.initContainers[*].livenessProbe",
    "volumeClaimTemplates[*].spec.storageClassName",
    "volumeClaimTemplates[*].spec.resources",
    "LeaderWorkerSet.spec.replicas",
)
"""The policy's default of `kubernetes.environment_owns`, for a platform made without a policy."""

_NAMED_BY_ENVIRONMENT = re.compile(
    r"\.(claimName|secretName|(secretKeyRef|secretRef|secret)\.name)$"
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NEVER_OWNED = tuple(
    f"spec.{containers}[x].{what}"
    for containers in ("containers", "initContainers")
    for what in ("image", "command[0]", "args[0]")
)
_ANY = "any"
_SCALAR = (str, int, float, bool)


def check_owned(owned: Sequence[str]) -> None:
    """Refuse patterns by which an environment would own what is served.

    Raises:
        UsageError: one does; the message names it.
    """
    for each in owned:
        pattern = _owner((each,))
        if not each or any(pattern and pattern.match(path) for path in _NEVER_OWNED):
            raise UsageError(
                f"kubernetes.environment_owns: {each!r} would let an environment serve another "
                "image or another command under an unchanged build",
                remedy="Name the one path that differs, for example "
                "spec.containers[*].env[PUBLIC_HOST].",
            )


def leaves_of(tree: Json, owned: Sequence[str]) -> Leaves:
    """The values of a tree by path, without those that an environment owns."""
    return dict(_leaves(tree, "", _owner(tuple(owned))))


def served(objects: Iterable[Json], owned: Sequence[str]) -> Served:
    """The served part of rendered objects."""
    return {each.workload: leaves_of(each.tree, owned) for each in templates_of(objects)}


def names_of_any(deployment: Deployment) -> tuple[str, str]:
    """Return the release and the namespace that stand for those of every environment."""
    return f"{deployment.model}-{_ANY}", f"{_ANY}-namespace"


def normalised(real: Served, other: Served, deployment: Deployment) -> Served:
    """`real` with the names of its release and namespace replaced by `names_of_any`.

    `other` is rendered of the same values under these names. A name is replaced only where that
    gives what `other` has, that is, where the chart itself put it; not where values hold it.
    Claims and Secrets may carry the environment's name.
    """
    release, namespace = names_of_any(deployment)
    renamings = (
        ((deployment.release, release), (deployment.namespace, namespace)),
        ((deployment.release, release),),
        ((deployment.namespace, namespace),),
    )

    def renamed(value: Any, renaming: Iterable[tuple[str, str]]) -> Any:
        if isinstance(value, list):
            return [renamed(each, renaming) for each in value]
        if isinstance(value, str):
            for old, new in renaming:
                value = value.replace(old, new)
        return value

    def in_other(name: str, known: Iterable[str]) -> str:
        return next((n for r in renamings if (n := renamed(name, r)) in known), name)

    def of_any(path: str, value: Any, there: Leaves) -> Any:
        if path in there and any(renamed(value, r) == there[path] for r in renamings):
            value = there[path]
        if isinstance(value, str) and _NAMED_BY_ENVIRONMENT.search(path):
            whole = rf"(?<![a-z0-9]){re.escape(deployment.environment)}(?![a-z0-9])"
            value = re.sub(whole, "{environment}", value)
        return value

    result: Served = {}
    for workload, leaves in real.items():
        place = in_other(workload, other)
        there = other.get(place, {})
        result[place] = {
            (at := in_other(path, there)): of_any(at, value, there)
            for path, value in leaves.items()
        }
    return result


def differing(left: Served, right: Served) -> list[tuple[str, str]]:
    """Each object and path at which two served parts differ."""
    return [
        (workload, path)
        for workload in sorted(left.keys() | right.keys())
        for path in sorted(
            left.get(workload, {}).keys() | right.get(workload, {}).keys(), key=_in_order
        )
        if value_at(left, workload, path) != value_at(right, workload, path)
    ]


def value_at(part: Served, workload: str, path: str) -> str:
    """The value there as JSON, or `nothing`; 1 and True differ in JSON, and not in Python."""
    leaves = part.get(workload, {})
    return json.dumps(leaves[path], ensure_ascii=False) if path in leaves else "nothing"


def unlike_build(
    applied: Served, expected: Served, *, kept: Leaves | None = None, whole: bool
) -> list[str]:
    """Return how applied objects serve something other than the build, one line for each path.

    `kept` is the template of pods that stay with the build before, which only a ramp has. Where the
    release is the build's as a `whole`, nothing of the build may be missing.
    """
    known = [canonical_digest(leaves) for leaves in (*expected.values(), kept)]
    there = [canonical_digest(leaves) for leaves in applied.values()]
    lines = []
    for (workload, leaves), digest in zip(applied.items(), there, strict=True):
        if digest not in known:
            nearest = expected.get(workload) or next(iter(expected.values()), {})
            lines += [
                f"{workload}: {path} is {value_at(applied, workload, path)}, and "
                f"{value_at({workload: nearest}, workload, path)} in the build"
                for _, path in differing({workload: leaves}, {workload: nearest})
            ]
    if whole:
        lines += [
            f"{workload} of the build is missing"
            for workload, leaves in expected.items()
            if canonical_digest(leaves) not in there
        ]
    return lines


def unlike(rendered: Leaves, live: Leaves) -> list[str]:
    """Return how a live pod template differs from the rendered one, one line for each path.

    The API server fills in defaults, leaves out what is empty, and writes amounts its own way.
    Lists do not grow by themselves, so one that is longer is a difference.
    """
    paths = [path for path in rendered if not _alike(path, rendered[path], live.get(path))]
    paths += [path for path in live if path.endswith("[]") and path not in rendered]
    return [
        f"{path}: {_shown(rendered.get(path))} was rendered, {_shown(live.get(path))} runs"
        for path in paths
    ]


def _alike(path: str, rendered: Any, live: Any) -> bool:
    if live is None:
        return not rendered
    if rendered == live or str(rendered) == str(live):
        return True
    if ".resources." not in path and not path.endswith(".sizeLimit"):
        return False
    try:
        return quantity(rendered) == quantity(live)
    except (ValueError, TypeError):
        return False


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _leaves(value: Any, path: str, owned: "re.Pattern[str] | None") -> Iterator[tuple[str, Any]]:
    if value is None or (path and owned is not None and owned.match(path)):
        return
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            text = str(key)
            step = text if _PLAIN.fullmatch(text) else f"[{json.dumps(text)}]"
            joint = "." if path and not step.startswith("[") else ""
            yield from _leaves(inner, path + joint + step, owned)
    elif isinstance(value, list) and value:
        names = [each.get("name") if isinstance(each, Mapping) else None for each in value]
        named = all(isinstance(n, str) and n for n in names) and len(set(names)) == len(names)
        order = []
        for number, inner in enumerate(value):
            step = f"{path}[{names[number] if named else number}]"
            if owned is None or not owned.match(step):
                order.append(names[number])
                yield from _leaves(inner, step, owned)
        yield f"{path}[]", order if named else len(order)
    else:
        yield path, value if isinstance(value, (*_SCALAR, list, Mapping)) else str(value)


@cache
def _owner(owned: tuple[str, ...]) -> "re.Pattern[str] | None":
    """The pattern of the paths that begin with one of those that an environment owns."""
    if not owned:
        return None
    any_item, any_key = re.escape("[*]"), re.escape("*")
    texts = [
        re.escape(each).replace(any_item, r"\[[^\]]*\]").replace(any_key, r"[^.\[\]]+")
        for each in owned
    ]
    return re.compile(f"(?:{'|'.join(texts)})(?=[.\\[]|$)")


def _in_order(path: str) -> tuple[Any, ...]:
    """Sort paths with numbers as numbers, and a list's own entry behind its items."""
    parts = re.split(r"(\d+)", path.replace("[]", "[~]"))
    return tuple((part.isdigit(), int(part) if part.isdigit() else part) for part in parts)
