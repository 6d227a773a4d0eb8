"""History of a release, read from Helm, and what of its newest revision runs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_rollout.model.deployment import Deployment, Revision, RevisionStatus
from vllm_rollout.model.errors import UsageError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi, NotFoundError
from vllm_rollout.platform.kubernetes.composition import Rollout, read_pods, read_rollout
from vllm_rollout.platform.kubernetes.helm import Helm, HelmRevision
from vllm_rollout.platform.kubernetes.nodes import quantity
from vllm_rollout.platform.kubernetes.pods import list_pods, replica_of
from vllm_rollout.platform.kubernetes.served import Leaves, served, shown
from vllm_rollout.platform.kubernetes.surge_plan import Pods

Json = Mapping[str, Any]

TRACK_LABEL = "vllm-rollout/track"
_LIVE = ("Deployment", "StatefulSet")
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
_SAME_AS_ABSENT = re.compile(
    r"^spec\.(hostNetwork|hostPID|hostIPC)$|\.(readOnly|stdin|stdinOnce|tty|hostPort)$"
    r"|Probe\.initialDelaySeconds$"
)
"""Where the API server leaves out False and 0, which it keeps elsewhere."""


class Releases:
    """Reads releases; changes nothing. Every method raises as `command.run` does."""

    def __init__(self, helm: Helm) -> None:
        self._helm = helm
        self._read: dict[tuple[str, str, HelmRevision], tuple[Rollout, Pods]] = {}

    def entries(self, deployment: Deployment) -> list[HelmRevision]:
        """Helm's own history, oldest first; empty when the release does not exist."""
        return self._helm.history(deployment.release, namespace=deployment.namespace)

    def rollout(self, deployment: Deployment, entry: HelmRevision) -> Rollout:
        """Return the rollout of that revision."""
        return self._known(deployment, entry)[0]

    def pods(self, deployment: Deployment, entry: HelmRevision) -> Pods:
        """Return how many pods of each track that revision asks for."""
        return self._known(deployment, entry)[1]

    def _known(self, deployment: Deployment, entry: HelmRevision) -> tuple[Rollout, Pods]:
        # A revision's values never change; its status does, and is part of the entry.
        key = (deployment.namespace, deployment.release, entry)
        if key not in self._read:
            values = self._helm.values(
                deployment.release, entry.revision, namespace=deployment.namespace
            )
            rollout = read_rollout(values, chart=entry.chart)
            self._read[key] = rollout, read_pods(values, rollout)
        return self._read[key]

    def stable_pod_template(self, deployment: Deployment, revision: int) -> dict[str, Any]:
        """The pod template of the Deployment that runs all pods but the canary's.

        Raises:
            UsageError: the revision has no such Deployment, or several.
        """
        manifest = self._helm.manifest(deployment.release, revision, namespace=deployment.namespace)
        found = stable_templates(manifest)
        if len(found) != 1:
            raise UsageError(
                f"revision {revision} of {deployment.release} has {len(found)} Deployments with "
                f"the label {TRACK_LABEL}=stable, so its pods cannot be kept beside a canary",
                remedy="Roll out once in one step (`ramp: [{share: 100%}]`).",
            )
        return found[0]


def stable_templates(objects: Sequence[Json]) -> list[dict[str, Any]]:
    """The pod templates of the Deployments that run all pods but the canary's."""
    return [
        each["spec"]["template"]
        for each in objects
        if each["kind"] == "Deployment"
        and each["metadata"].get("labels", {}).get(TRACK_LABEL) == "stable"
    ]


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
    for pod in list_pods(api, deployment) if templates else ():
        replica = replica_of(pod)
        processes = {c.name: (c.image, *c.command, *c.args) for c in pod.spec.containers}
        of_build = replica.ready and replica.build in ("", build)
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


def _process(container: Json) -> tuple[str, ...]:
    words = (*(container.get("command") or ()), *(container.get("args") or ()))
    return (container["image"], *words)


def _live(api: KubernetesApi, namespace: str, applied: Json) -> Json | None:
    """The applied object with its spec as it is in the cluster; None if it is not there."""
    kind, name = applied["kind"], applied["metadata"]["name"]
    read = (
        api.apps.read_namespaced_deployment
        if kind == "Deployment"
        else api.apps.read_namespaced_stateful_set
    )
    try:
        with api.doing("get", f"{kind.lower()}s {name} in namespace {namespace}"):
            found = read(name, namespace, _request_timeout=TIMEOUT_SECONDS)
    except NotFoundError:
        return None
    return {**applied, "spec": api.core.api_client.sanitize_for_serialization(found)["spec"]}


def newest_served(entries: Sequence[HelmRevision]) -> HelmRevision | None:
    """The newest revision that was brought up whole: deployed, else superseded."""
    for status in ("deployed", "superseded"):
        for entry in reversed(entries):
            if entry.status == status:
                return entry
    return None


def revision_of(entry: HelmRevision, rollout: Rollout) -> Revision:
    """The suite's revision for Helm's."""
    status = {
        "deployed": RevisionStatus.DEPLOYED,
        "superseded": RevisionStatus.SUPERSEDED,
    }.get(entry.status, RevisionStatus.FAILED)
    if entry.status.startswith("pending"):
        status = RevisionStatus.PENDING
    return Revision(
        number=entry.revision,
        build=rollout.build,
        status=status,
        created=entry.updated,
        description=entry.description,
        replicas=rollout.replicas,
        capacity=rollout.capacity,
    )
