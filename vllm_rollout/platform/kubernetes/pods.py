"""Pods as replicas, from the API server's JSON."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.errors import DeployError
from vllm_rollout.model.symptoms import Role
from vllm_rollout.model.text import redact
from vllm_rollout.platform.kubernetes.pod_fields import (
    STARTING,
    Container,
    ContainerSpec,
    Metadata,
    Spec,
    Status,
    Wire,
)
from vllm_rollout.platform.kubernetes.templates import HOOK

INSTANCE_LABEL = "app.kubernetes.io/instance"
BUILD_ANNOTATION = "vllm-rollout/build"
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_COMPONENT = "app.kubernetes.io/component"
_HELPER = re.compile(r"router|cache|redis|gateway|controller|operator|exporter", re.IGNORECASE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}$")
_ENDED = {"Failed", "Succeeded"}
_LEADERS = {"leaderworkerset.sigs.k8s.io/worker-index": "0", "ray.io/node-type": "head"}
"""Labels of pods that serve as a group, with the values of the one that has the server."""


class Pod(Wire):
    """The fields of a pod's JSON that the suite reads."""

    metadata: Metadata
    spec: Spec
    status: Status = Status()
    template: tuple[str, ...] = ()
    """Names of its template's containers; empty where they are not known."""

    @property
    def serves(self) -> bool:
        """True if it is meant to serve: not being deleted, no Helm hook and no Job's pod."""
        return (
            self.metadata.deletion_timestamp is None
            and HOOK not in self.metadata.annotations
            and all(owner.kind != "Job" for owner in self.metadata.owner_references)
        )

    @property
    def owner(self) -> tuple[str, str]:
        """Kind and name of what it is made by; a Deployment's name for its ReplicaSet's."""
        for owner in self.metadata.owner_references:
            if owner.kind == "ReplicaSet":
                return "Deployment", owner.name.rpartition("-")[0]
            return owner.kind, owner.name
        return "", ""

    @property
    def of_job(self) -> bool:
        """True for a pod that a Job runs once, no hook's."""
        return self.owner[0] == "Job" and HOOK not in self.metadata.annotations

    @property
    def is_helper(self) -> bool:
        """True for a router, a cache or a controller beside the model servers."""
        image = self.server.image.rpartition("/")[2]
        words = (self.metadata.labels.get(_COMPONENT, ""), self.server.name, image)
        return not self.has_device and any(map(_HELPER.search, words))

    @property
    def has_device(self) -> bool:
        """True if a container is given a device: a GPU, as a rule."""
        return any(map(_has_device, self.spec.containers))

    @property
    def server(self) -> ContainerSpec:
        """The model server's container: other hands put theirs beside it, also before it.

        Of those of the pod's template, as far as that is known: the only one that is given a
        device, else `vllm`, else the one that the pod calls its default, else the only one of vLLM
        by its name or image, else the first.
        """
        return self._likely_server or self._own[0]

    @property
    def _likely_server(self) -> ContainerSpec | None:
        own = self._own
        default = self.metadata.annotations.get(_DEFAULT_CONTAINER, "")
        choices = (
            own if len(own) == 1 else (),
            [c for c in own if _has_device(c)],
            [c for c in own if c.name == "vllm"],
            [c for c in own if c.name == default],
            [c for c in own if "vllm" in f"{c.name} {c.image}".lower()],
        )
        return next((found[0] for found in choices if len(found) == 1), None)

    @property
    def _own(self) -> Sequence[ContainerSpec]:
        named = [c for c in self.spec.containers if c.name in self.template]
        return named or self.spec.containers

    @property
    def of_unknown_server(self) -> bool:
        """True if nothing but the pod's template shows which container is the server."""
        return self._likely_server is None

    @property
    def server_status(self) -> Container | None:
        """Status of that container; None before the kubelet has reported one."""
        name = self.server.name
        return next((c for c in self.status.container_statuses if c.name == name), None)

    @property
    def unready(self) -> Container | None:
        """Status of the container that keeps the pod from being ready; None if none is reported.

        An init container before the others have begun; then one that fails, the server first; then
        one that is not ready yet.
        """
        server, statuses = self.server_status, self.status
        begun = server and not (server.state.waiting and server.state.waiting.reason in STARTING)
        inits = () if begun else statuses.init_container_statuses
        sidecars = [c for c in statuses.init_container_statuses if c.name in self._sidecars]
        pending = [c for c in inits if not (c.started if c in sidecars else _is_done(c))]
        running = [c for c in (server, *statuses.container_statuses, *sidecars) if c]
        restarts = self.spec.restart_policy == "Always"
        waiting = [c for c in running if not c.ready and (restarts or not _is_done(c))]
        failing = [c for c in waiting if c.fails]
        return next(iter((*pending, *failing, *waiting)), None)

    def role_of(self, container: str) -> Role:
        """Return what that container is in the pod."""
        if container == self.server.name:
            return "server"
        inits = {c.name for c in self.status.init_container_statuses} - self._sidecars
        return "init" if container in inits else "sidecar"

    @property
    def _sidecars(self) -> set[str]:
        """Names of the init containers that run on beside the others."""
        inits = self.spec.init_containers
        return {str(c["name"]) for c in inits if c.get("restartPolicy") == "Always"}


def parse_pod(document: Mapping[str, Any]) -> Pod:
    """The pod in the API server's JSON.

    Raises:
        DeployError: it is not a pod.
    """
    try:
        return Pod.model_validate(document)
    except ValidationError as error:
        raise DeployError(f"the API server's pod cannot be read: {error}") from error


def _has_device(container: ContainerSpec) -> bool:
    resources = container.resources
    return bool(resources.get("claims")) or any("/" in r for r in resources.get("limits") or ())


def _is_done(container: Container) -> bool:
    ended = container.state.terminated
    return ended is not None and ended.exit_code == 0


def replica_of(pod: Pod) -> Replica:
    """The replica that `pod` is. It is ready only if its Ready condition says True.

    Restarts are those of the model server: a proxy beside it may be restarted as it likes.
    """
    status, server = pod.status, pod.server_status
    reason, message = _problem(pod)
    ready = next((c for c in status.conditions if c.type == "Ready" and c.status == "True"), None)
    return Replica(
        name=pod.metadata.name,
        phase=status.phase,
        ready=ready is not None,
        restarts=server.restart_count if server else 0,
        build=pod.metadata.annotations.get(BUILD_ANNOTATION, ""),
        reason=reason,
        message=message,
        image=_image(pod),
        command=_command(pod),
        host=status.pod_ip,
        ready_since=ready.last_transition_time if ready else None,
        follower=any(pod.metadata.labels.get(k, v) != v for k, v in _LEADERS.items()),
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


def _problem(pod: Pod) -> tuple[str, str]:
    """Return the root cause of a pod that is not ready; empty when nothing is wrong."""
    status, container = pod.status, pod.unready
    if status.reason:
        return status.reason, status.message
    if container and container.fails:
        waiting, terminated = container.state.waiting, container.state.terminated
        ended = _ended(container)
        if waiting:
            return waiting.reason, "; ".join(filter(None, [redact(waiting.message), ended]))
        return terminated.reason if terminated else "Restarted", ended
    for condition in status.conditions:
        if condition.status != "True" and condition.type in ("PodScheduled", "Ready"):
            return condition.reason, condition.message
    return "", ""


def _ended(container: Container) -> str:
    if (end := container.end) is None:
        return ""
    reason = end.reason or "no reason given"
    text = f"{container.name} ended with {reason}, exit code {end.exit_code}"
    return f"{text}: {redact(end.message)}" if end.message else text


def serving(pods: Sequence[Pod]) -> list[Pod]:
    """The pods that are meant to serve, without leftovers (Evicted, Completed) beside others.

    The controller has put another pod in the place of one that has ended. Where none is left, those
    that ended tell why. Routers and caches are no replicas; beside pods with a device, no pod
    without one is.
    """
    meant = [pod for pod in pods if pod.serves and not pod.is_helper]
    meant = [pod for pod in meant if pod.has_device] or meant
    return [pod for pod in meant if pod.status.phase not in _ENDED] or meant
