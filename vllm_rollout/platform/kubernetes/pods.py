"""Pods as replicas, from the API server's JSON."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import DeployError, RolloutError
from vllm_rollout.model.text import redact, secrets_in
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi

INSTANCE_LABEL = "app.kubernetes.io/instance"
BUILD_ANNOTATION = "vllm-rollout/build"
_HOOK_ANNOTATION = "helm.sh/hook"
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}$")
_ENDED = {"Failed", "Succeeded"}
_STARTING = {"ContainerCreating", "PodInitializing"}


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True)


class _State(_Wire):
    reason: str = ""
    message: str = ""
    exit_code: int | None = None


class _States(_Wire):
    waiting: _State | None = None
    running: Mapping[str, Any] | None = None
    terminated: _State | None = None


class _Container(_Wire):
    name: str
    image_id: str = Field(default="", alias="imageID")
    ready: bool = False
    restart_count: int = 0
    state: _States = _States()
    last_state: _States = _States()


class _Condition(_Wire):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Status(_Wire):
    phase: str = "Unknown"
    reason: str = ""
    message: str = ""
    conditions: Sequence[_Condition] = ()
    init_container_statuses: Sequence[_Container] = ()
    container_statuses: Sequence[_Container] = ()


class _Probe(_Wire):
    period_seconds: float = 10.0
    failure_threshold: int = 3


class _Port(_Wire):
    container_port: int
    name: str = ""


class _ContainerSpec(_Wire):
    name: str
    image: str = ""
    command: Sequence[str] = ()
    args: Sequence[str] = ()
    ports: Sequence[_Port] = ()
    resources: Mapping[str, Any] = Field(default_factory=dict)
    startup_probe: _Probe | None = None


class _Spec(_Wire):
    node_name: str = ""
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = Field(default_factory=dict)
    init_containers: Sequence[Mapping[str, Any]] = ()
    containers: Sequence[_ContainerSpec] = Field(min_length=1)


class _Owner(_Wire):
    kind: str


class _Metadata(_Wire):
    name: str
    annotations: Mapping[str, str] = Field(default_factory=dict)
    owner_references: Sequence[_Owner] = ()
    deletion_timestamp: str | None = None


class Pod(_Wire):
    """The fields of a pod's JSON that the suite reads."""

    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()

    @property
    def serves(self) -> bool:
        """True if it is meant to serve: not being deleted, no Helm hook and no Job's pod."""
        return (
            self.metadata.deletion_timestamp is None
            and _HOOK_ANNOTATION not in self.metadata.annotations
            and all(owner.kind != "Job" for owner in self.metadata.owner_references)
        )

    @property
    def server(self) -> _ContainerSpec:
        """The model server's container: other hands put theirs beside it, also before it.

        The one that the pod calls its default, else the only one of vLLM by its name or image,
        else the only one that is given a device, else the first.
        """
        containers = self.spec.containers
        default = self.metadata.annotations.get(_DEFAULT_CONTAINER, "")
        choices = (
            [c for c in containers if c.name == default],
            [c for c in containers if "vllm" in f"{c.name} {c.image}".lower()],
            [c for c in containers if any("/" in r for r in c.resources.get("limits") or ())],
        )
        return next((found[0] for found in choices if len(found) == 1), containers[0])

    @property
    def server_status(self) -> _Container | None:
        """Status of that container; None before the kubelet has reported one."""
        name = self.server.name
        return next((c for c in self.status.container_statuses if c.name == name), None)


def parse_pod(document: Mapping[str, Any]) -> Pod:
    """The pod in the API server's JSON.

    Raises:
        DeployError: it is not a pod.
    """
    try:
        return Pod.model_validate(document)
    except ValidationError as error:
        raise DeployError(f"the API server's pod cannot be read: {error}") from error


def replica_of(pod: Pod) -> Replica:
    """The replica that `pod` is. It is ready only if its Ready condition says True."""
    status = pod.status
    reason, message = _problem(status)
    return Replica(
        name=pod.metadata.name,
        phase=status.phase,
        ready=any(c.type == "Ready" and c.status == "True" for c in status.conditions),
        restarts=sum(container.restart_count for container in status.container_statuses),
        build=pod.metadata.annotations.get(BUILD_ANNOTATION, ""),
        reason=reason,
        message=message,
        image=_image(pod),
        command=_command(pod),
    )


def _command(pod: Pod) -> tuple[str, ...]:
    """The model server's command line; empty where its image has the command."""
    server = pod.server
    return (*server.command, *server.args) if server.command else ()


def _image(pod: Pod) -> str:
    """The digest of the model server's image, as the runtime pulled it; empty if unknown."""
    status = pod.server_status
    found = _DIGEST.search(status.image_id) if status else None
    return found[0] if found else ""


def _problem(status: _Status) -> tuple[str, str]:
    """Return the root cause of a pod that is not ready; empty when nothing is wrong."""
    if status.reason:
        return status.reason, status.message
    for container in (*status.init_container_statuses, *status.container_statuses):
        waiting, terminated = container.state.waiting, container.state.terminated
        if waiting and waiting.reason and waiting.reason not in _STARTING:
            return waiting.reason, "; ".join(filter(None, [waiting.message, _last_end(container)]))
        if terminated and terminated.exit_code != 0:
            return terminated.reason, _ended(container.name, terminated)
        if not container.ready and container.restart_count and _last_end(container):
            return "Restarted", _last_end(container)
    for condition in status.conditions:
        if condition.status != "True" and condition.type in ("PodScheduled", "Ready"):
            return condition.reason, condition.message
    return "", ""


def _last_end(container: _Container) -> str:
    ended = container.last_state.terminated
    return _ended(container.name, ended) if ended else ""


def _ended(name: str, state: _State) -> str:
    text = f"{name} ended with {state.reason or 'no reason given'}, exit code {state.exit_code}"
    return f"{text}: {state.message}" if state.message else text


def list_pods(api: KubernetesApi, deployment: Deployment) -> list[Pod]:
    """The release's pods that are meant to serve, by name.

    Raises: as `KubernetesApi.doing`.
    """
    return serving(list_instance(api, deployment.namespace, deployment.release))


def serving(pods: Sequence[Pod]) -> list[Pod]:
    """The pods that are meant to serve, without leftovers (Evicted, Completed) beside others.

    The controller has put another pod in the place of one that has ended. Where none is left, those
    that ended tell why.
    """
    meant = [pod for pod in pods if pod.serves]
    return [pod for pod in meant if pod.status.phase not in _ENDED] or meant


def list_instance(api: KubernetesApi, namespace: str, instance: str) -> list[Pod]:
    """All pods of an instance of an application, by name.

    Raises: as `KubernetesApi.doing`.
    """
    with api.doing("list", f"pods in namespace {namespace}"):
        found = api.core.list_namespaced_pod(
            namespace,
            label_selector=f"{INSTANCE_LABEL}={instance}",
            _request_timeout=TIMEOUT_SECONDS,
        )
    documents = [api.core.api_client.sanitize_for_serialization(item) for item in found.items]
    return sorted(map(parse_pod, documents), key=lambda pod: pod.metadata.name)


def anything_left(api: KubernetesApi, deployment: Deployment) -> bool:
    """Return True if a release that is being removed still has Deployments or pods.

    Raises: as `KubernetesApi.doing`.
    """
    namespace = deployment.namespace
    with api.doing("list", f"deployments in namespace {namespace}"):
        found = api.apps.list_namespaced_deployment(
            namespace,
            label_selector=f"{INSTANCE_LABEL}={deployment.release}",
            _request_timeout=TIMEOUT_SECONDS,
        )
    return bool(found.items or list_instance(api, namespace, deployment.release))


def pod_log(api: KubernetesApi, deployment: Deployment, pod: Pod, *, tail: int) -> str:
    """The last `tail` lines of the model server's container, secrets redacted.

    Of a container that waits to be restarted it is the log of the one before; empty where
    nothing has run yet. A log that cannot be read is replaced by the reason: one lost node must
    not hide the other pods' logs.
    """
    status = pod.server_status
    if status is None:
        return ""
    ended = status.state.running is None and status.restart_count > 0
    try:
        with api.doing("get", f"pods/log in namespace {deployment.namespace}"):
            text = api.core.read_namespaced_pod_log(
                pod.metadata.name,
                deployment.namespace,
                container=status.name,
                previous=ended,
                tail_lines=tail,
                _request_timeout=TIMEOUT_SECONDS,
            )
    except RolloutError as error:
        return f"(no log: {error})"
    return redact(str(text), secrets_in())
