"""Served part of rendered objects: the pod templates of their servers, as values by path.

    {"Deployment llama-2-7b-any": {"spec.containers[vllm].args[0]": "/models/llama", …}}

Left out are the paths that an environment may own. It is what a build is known by.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from vllm_rollout.model.deployment import Deployment, canonical_digest
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.templates import Json, templates_of

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
_COUNTS_AS_WRITTEN = re.compile(
    r"\.(image|mountPath|subPath|subPathExpr|workingDir)$|\.(command|args)\[|\.content\."
    r"|^(ConfigMap|PersistentVolume)\.|^spec\.volumes\[[^\]]+\]\.(?!name$)"
)
"""Paths at which the name of a release may decide what is loaded, so that it is not normalised."""
_NAME_OF_OBJECT = re.compile(r"\.(configMap\.name|volumeName)$")
_FLAGS_WITH_NAMES = (
    *("--k8s-namespace", "--k8s-label-selector", "--namespace"),
    *("--pool-name", "--pool-namespace", "--poolName", "--poolNamespace"),
)
"""Flags of routers for objects of the cluster; vLLM has none of them."""
_VARIABLE = re.compile(r"\$[({]?([A-Za-z_]\w*)")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_PROCESS = ("image", "command", "args")
_NEVER_OWNED = tuple(
    ["spec", containers, "[x]", *rest]
    for containers in _CONTAINERS
    for rest in (
        *([what] for what in _PROCESS),
        *(["lifecycle", hook, "exec", "command"] for hook in ("postStart", "preStop")),
    )
)
_OF_TEMPLATES = ("metadata", "spec", "volumeClaimTemplates", "fieldRef")
_SECRETS_CONTENT = ".secret.content.digest"
_ANY = "any"
_SCALAR = (str, int, float, bool)


def check_owned(owned: Sequence[str]) -> None:
    """Refuse patterns by which an environment would own what is served.

    Raises:
        UsageError: one does; the message names it.
    """
    for each in owned:
        if not each or _may_own_a_process(re.findall(r"\[[^\]]*\]|[^.\[\]]+", each)):
            raise UsageError(
                f"kubernetes.environment_owns: {each!r} would let an environment serve another "
                "image or another command under an unchanged build",
                remedy="Name the one path that differs, for example "
                "spec.containers[*].env[PUBLIC_HOST].",
            )


def _may_own_a_process(steps: Sequence[str]) -> bool:
    """Return True if a pattern of these steps may match an image, a command or arguments."""

    def may_be(step: str, key: str) -> bool:
        return step.startswith("[") if key.startswith("[") else fnmatchcase(key, step)

    if not steps or any(all(map(may_be, steps, never)) for never in _NEVER_OWNED):
        return True
    if steps[0] == "metadata":
        return False
    if steps[0] not in _OF_TEMPLATES:
        # All of an object, or a part of it that may have a container of its own kind.
        whole = len(steps) == 1 or steps[1:] == ["spec"]
        return whole or any(fnmatchcase(k, s) for s in steps for k in (*_PROCESS, *_CONTAINERS))
    return any(step in _PROCESS for step in steps)


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
    gives what `other` has, that is, where the chart itself put it; not where values hold it, and
    not in what decides what is loaded: image, command, arguments, variables that these name, paths
    and contents of mounts. Claims and Secrets may carry the environment's name.
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

    def of_any(path: str, value: Any, leaves: Leaves, there: Leaves) -> Any:
        free = not _counts_as_written(path, leaves)
        if free and path in there and any(renamed(value, r) == there[path] for r in renamings):
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
            (at := in_other(path, there)): of_any(at, value, leaves, there)
            for path, value in leaves.items()
        }
    return result


def _counts_as_written(path: str, leaves: Leaves) -> bool:
    """Return True where the name of a release or namespace may decide what is loaded."""
    if _NAMED_BY_ENVIRONMENT.search(path) or _NAME_OF_OBJECT.search(path):
        return False
    if match := re.fullmatch(r"(.+\.(?:args|command)\[)(\d+)\]", path):
        before = leaves.get(f"{match[1]}{int(match[2]) - 1}]", "")
        own = str(leaves.get(path, "")).partition("=")[0]
        return own not in _FLAGS_WITH_NAMES and before not in _FLAGS_WITH_NAMES
    if match := re.fullmatch(r"(.+)\.env\[([^\]]+)\]\.value", path):
        texts = (v for p, v in leaves.items() if p.startswith(match[1]) and isinstance(v, str))
        return any(match[2] in _VARIABLE.findall(text) for text in texts)
    return _COUNTS_AS_WRITTEN.search(path) is not None


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
    return shown(path, part.get(workload, {}))


def shown(path: str, leaves: Leaves) -> str:
    """The value as JSON, or `nothing`, to be compared and printed; of a Secret no more than that
    it is there, and a few digits that tell two apart."""
    if path not in leaves:
        return "nothing"
    if path.endswith(_SECRETS_CONTENT):
        return f"a Secret ({canonical_digest([path, leaves[path]])[-6:]})"
    return json.dumps(leaves[path], ensure_ascii=False)


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


def _leaves(value: Any, path: str, owned: "re.Pattern[str] | None") -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if path and owned is not None and owned.match(path):
        # A probe's times are the environment's; a command that it runs in the container is not.
        if isinstance(value, Mapping) and isinstance(value.get("exec"), Mapping):
            yield from _leaves(value["exec"], f"{path}.exec", None)
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
