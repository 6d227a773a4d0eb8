"""Live objects: as they are, and beside what was applied (edited templates, others' fields)."""

import json
import re
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import LiveObject
from vllm_rollout.platform.kubernetes.api import KubernetesApi
from vllm_rollout.platform.kubernetes.nodes import quantity
from vllm_rollout.platform.kubernetes.pod_reader import list_release, list_workloads, read_workload
from vllm_rollout.platform.kubernetes.pods import replica_of
from vllm_rollout.platform.kubernetes.served import Leaves, leaves_of, served, shown
from vllm_rollout.platform.kubernetes.templates import Json

_SAME_AS_ABSENT = re.compile(
    r"^spec\.(hostNetwork|hostPID|hostIPC)$|\.(readOnly|stdin|stdinOnce|tty|hostPort)$"
    r"|Probe\.initialDelaySeconds$"
)
"""Where the API server leaves out False and 0, which it keeps elsewhere."""

_LIVE = ("Deployment", "StatefulSet")
_MANAGER = re.compile(r'conflict with "([^"]+)"')
_HELM = "helm"
"""Field manager of Helm, whichever version."""
_CONTAINER = r"spec\.(?:containers|initContainers)\[[^\]]*\]"
_VOLUME = r"spec\.volumes\[[^\]]*\]"
_HANDLER = rf"{_CONTAINER}\.(?:\w+Probe|lifecycle\.(?:postStart|preStop))"
_CLAIM = r"volumeClaimTemplates\[\d+\]"
_DEFAULTS = tuple(
    (re.compile(path), values)
    for path, values in {
        r"spec\.restartPolicy": ("Always",),
        r"spec\.dnsPolicy": ("ClusterFirst",),
        r"spec\.schedulerName": ("default-scheduler",),
        r"spec\.terminationGracePeriodSeconds": (30,),
        r"spec\.enableServiceLinks": (True,),
        rf"(?:spec|{_CONTAINER})\.securityContext": ({},),
        rf"{_CONTAINER}\.resources": ({},),
        rf"{_CONTAINER}\.terminationMessagePath": ("/dev/termination-log",),
        rf"{_CONTAINER}\.terminationMessagePolicy": ("File",),
        rf"{_CONTAINER}\.imagePullPolicy": ("Always", "IfNotPresent"),
        rf"{_CONTAINER}\.securityContext\.procMount": ("Default",),
        rf"{_CONTAINER}\.ports\[[^\]]*\]\.protocol": ("TCP",),
        rf"{_CONTAINER}\.env\[.*\]\.valueFrom\.fieldRef\.apiVersion": ("v1",),
        rf"{_CONTAINER}\.env\[.*\]\.valueFrom\.resourceFieldRef\.divisor": ("0",),
        rf"{_HANDLER}\.httpGet\.scheme": ("HTTP",),
        rf"{_HANDLER}\.httpGet\.path": ("/",),
        rf"{_HANDLER}\.grpc\.service": ("",),
        rf"{_HANDLER}\.(?:timeoutSeconds|successThreshold)": (1,),
        rf"{_HANDLER}\.periodSeconds": (10,),
        rf"{_HANDLER}\.failureThreshold": (3,),
        rf"{_VOLUME}\.(?:secret|configMap|downwardAPI|projected)\.defaultMode": (420,),
        rf"{_VOLUME}\..*\.fieldRef\.apiVersion": ("v1",),
        rf"{_VOLUME}\..*\.resourceFieldRef\.divisor": ("0",),
        rf"{_VOLUME}\..*\.serviceAccountToken\.expirationSeconds": (3600,),
        rf"{_VOLUME}\.hostPath\.type": ("",),
        rf"{_VOLUME}\.emptyDir": ({},),
        rf"{_VOLUME}\.image\.pullPolicy": ("Always", "IfNotPresent"),
        rf"(?:{_CLAIM}|{_VOLUME}\.ephemeral\.volumeClaimTemplate)\.spec\.volumeMode": (
            "Filesystem",
        ),
        rf"{_CLAIM}\.apiVersion": ("v1",),
        rf"{_CLAIM}\.kind": ("PersistentVolumeClaim",),
        rf"{_CLAIM}\.status\.phase": ("Pending",),
    }.items()
)
"""What the API server fills in where a pod template says nothing: values by path. Anything else
that is live and was not rendered is somebody's edit."""


def live_objects(
    api: KubernetesApi,
    namespace: str,
    instances: Sequence[str],
    *,
    scaled: Collection[tuple[str, str]],
) -> dict[str, LiveObject]:
    """The specs of some releases' workloads as they are, by kind and name.

    The number of pods is left out of those that an autoscaler has `scaled` (kind, name): it is no
    edit. One that is being deleted, and is there until its pods have gone, counts as gone.

    Raises: as `KubernetesApi.doing`.
    """
    found = {}
    for each in list_workloads(api, namespace, instances):
        if each["metadata"].get("deletionTimestamp"):
            continue
        key = (each["kind"], each["metadata"]["name"])
        spec = dict(each["spec"])
        if key in scaled:
            spec.pop("replicas", None)
        fields = {f"spec.{path}": value for path, value in leaves_of(spec, ()).items()}
        found[" ".join(key)] = LiveObject(fields=fields, set_by=_managers(each))
    return found


def last_manager(document: Json) -> str:
    """Return who has changed the object last, its status left out; empty if nobody says."""
    return _managers(document).get("", "")


def _managers(document: Json) -> dict[str, str]:
    entries = document["metadata"].get("managedFields") or ()
    found: dict[str, str] = {}
    # Times are whole seconds: of two in one, Helm's was the first.
    for each in sorted(entries, key=lambda e: (e.get("time", ""), e.get("manager") != _HELM)):
        if each.get("subresource") != "status":
            keys = (each.get("fieldsV1") or {}).get("f:spec") or ()
            found |= {f"spec.{key.removeprefix('f:')}": each["manager"] for key in keys}
            found[""] = each["manager"]
    return found


def unlike_running(
    api: KubernetesApi,
    deployment: Deployment,
    applied: Sequence[Json],
    *,
    owned: Sequence[str],
    build: str,
) -> list[str]:
    """Return how live pod templates, and ready pods of `build`, differ from what Helm applied.

    Pods may have more than their template: meshes and clouds add containers and variables.

    Raises: as `KubernetesApi.doing`.
    """
    live = [_live(api, deployment.namespace, each) for each in applied if each["kind"] in _LIVE]
    rest = [each for each in applied if each["kind"] not in _LIVE]
    running = served([*filter(None, live), *rest], owned)
    lines = []
    for workload, leaves in served(applied, owned).items():
        if workload in running:
            lines += [f"{workload}: {line}" for line in unlike(leaves, running[workload])]
        else:
            lines.append(f"{workload} is not there, or runs no pods")
    templates = [
        {c["name"]: _process(c) for c in each["spec"]["template"]["spec"]["containers"]}
        for each in filter(None, live)
    ]
    for pod in list_release(api, deployment) if templates else ():
        replica = replica_of(pod)
        processes = {c.name: (c.image, *c.command, *c.args) for c in pod.spec.containers}
        of_build = pod.serves and replica.ready and replica.build in ("", build)
        if of_build and not any(t.items() <= processes.items() for t in templates):
            texts = (f"{name} runs {' '.join(words)}" for name, words in processes.items())
            lines.append(f"{replica.name} is not as its template: {'; '.join(texts)}")
    return lines


def unlike(rendered: Leaves, live: Leaves) -> list[str]:
    """Return how a live pod template differs from the rendered one, one line for each path.

    The API server fills in `_DEFAULTS`, leaves out what is empty, and writes amounts its own way.
    """
    paths = [path for path in rendered if not _alike(path, rendered[path], live.get(path))]
    paths += [path for path in live if path not in rendered and not _is_default(path, live)]
    return [f"{p}: {shown(p, rendered)} was rendered, {shown(p, live)} runs" for p in paths]


def _alike(path: str, rendered: Any, live: Any) -> bool:
    if live is None:
        return rendered in ("", [], {}) or (not rendered and bool(_SAME_AS_ABSENT.search(path)))
    if rendered == live or str(rendered) == str(live):
        return True
    if ".resources." not in path and not path.endswith(".sizeLimit"):
        return False
    try:
        return quantity(rendered) == quantity(live)
    except (ValueError, TypeError):
        return False


def _is_default(path: str, live: Leaves) -> bool:
    """Return True if the API server itself put the value there."""
    value = live[path]
    if path == "spec.serviceAccount":
        return True  # the former name of serviceAccountName, which it always copies
    if path.endswith(".hostPort"):
        of_container = path.removesuffix("hostPort") + "containerPort"
        return live.get("spec.hostNetwork") is True and value == live.get(of_container)
    return any(pattern.fullmatch(path) and value in values for pattern, values in _DEFAULTS)


def _live(api: KubernetesApi, namespace: str, applied: Json) -> Json | None:
    """The applied object with its spec as it is in the cluster; None if it is not there."""
    found = read_workload(api, namespace, applied["kind"], applied["metadata"]["name"])
    return {**applied, "spec": found["spec"]} if found else None


def field_conflicts(api: KubernetesApi, namespace: str, objects: Sequence[Json]) -> list[str]:
    """Return the fields of `objects` that another manager has set otherwise, and which manager.

    The API server is asked, in a dry run, for what Helm 4 asks of it. An object that it refuses for
    any other reason is left to Helm.

    Raises:
        UnreachableError: no answer, or no permission.
    """
    lines = []
    for each in objects:
        kind, name = each["kind"], each["metadata"]["name"]
        where = each["metadata"].get("namespace", namespace)
        resource = f"{_plural(kind)} in namespace {where}"
        with api.doing("patch", resource):
            status, text = _apply_dry(api, each, where)
        if status == HTTPStatus.CONFLICT:
            for cause in json.loads(text).get("details", {}).get("causes", ()):
                found = _MANAGER.search(cause.get("message", ""))
                if found and found[1] != _HELM:
                    lines.append(f"{cause['field']} of {kind} {name} is set by {found[1]}")
        elif status >= HTTPStatus.BAD_REQUEST:
            error = api.refusal(status, text, "patch", resource)
            if isinstance(error, UnreachableError):
                raise error
    return lines


def _apply_dry(api: KubernetesApi, each: Json, namespace: str) -> tuple[int, str]:
    return api.ask(
        "PATCH",
        object_path(each, namespace),
        query_params=[("fieldManager", _HELM), ("dryRun", "All")],
        header_params={"Content-Type": "application/apply-patch+yaml"},
        body=json.dumps(each),
    )


def object_path(each: Json, namespace: str) -> str:
    """The path of an object in the API."""
    version = each["apiVersion"]
    group = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{group}/namespaces/{namespace}/{_plural(each['kind'])}/{each['metadata']['name']}"


def _plural(kind: str) -> str:
    name = kind.lower()
    if name.endswith("y"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


def _process(container: Json) -> tuple[str, ...]:
    words = (*(container.get("command") or ()), *(container.get("args") or ()))
    return (container["image"], *words)
