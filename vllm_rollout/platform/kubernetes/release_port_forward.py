"""A tunnel to a release: each connection goes to the next ready pod, as a Service would have it.

Or to one pod alone.
"""

import itertools
import time

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.platform.kubernetes.pods import Pod, list_pods, replica_of
from vllm_rollout.platform.kubernetes.port_forward import PortForward

_PODS_FRESH_SECONDS = 1.0


def release_port_forward(
    api: KubernetesApi, deployment: Deployment, *, service: str, port: int, pod: str = ""
) -> PortForward:
    """A tunnel to the ready pods of a release, or to that of the name; `port` is the Service's.

    Raises:
        NotFoundError, UnreachableError: the Service cannot be read.
    """
    target = _target_port(api, deployment.namespace, service, port)
    return PortForward(
        api,
        namespace=deployment.namespace,
        choose=_ReadyPods(api, deployment, target, pod).choose,
        destination=f"{deployment} {pod}".rstrip(),
    )


class _ReadyPods:
    """The ready pods of a release in turn; the list is not older than a second."""

    def __init__(
        self, api: KubernetesApi, deployment: Deployment, target: int | str, only: str
    ) -> None:
        self._api = api
        self._deployment = deployment
        self._target = target
        self._only = only
        self._turn = itertools.count()
        self._pods: list[Pod] = []
        self._looked = -_PODS_FRESH_SECONDS

    def choose(self) -> tuple[str, int]:
        """The next of them.

        Raises:
            DeployError: none is ready.
            UnreachableError: they cannot be listed.
        """
        if time.monotonic() - self._looked > _PODS_FRESH_SECONDS:
            self._pods = [
                pod
                for pod in list_pods(self._api, self._deployment)
                if replica_of(pod).ready and self._only in ("", pod.metadata.name)
            ]
            self._looked = time.monotonic()
        pods = self._pods
        if not pods:
            raise DeployError(f"no pod of {self._deployment} is ready")
        pod = pods[next(self._turn) % len(pods)]
        return pod.metadata.name, _port_of(pod, self._target)


def _target_port(api: KubernetesApi, namespace: str, service: str, port: int) -> int | str:
    """The number, or the name, of the pods' port behind the Service's `port`."""
    with api.doing("get", f"services {service} in namespace {namespace}"):
        found = api.core.read_namespaced_service(
            service, namespace, _request_timeout=TIMEOUT_SECONDS
        )
    for entry in found.spec.ports or ():
        if entry.port == port:
            target: int | str = entry.target_port or port
            return target
    raise DeployError(
        f"the Service {service} in namespace {namespace} has no port {port}",
        remedy="Name its port in `service_url`.",
    )


def _port_of(pod: Pod, target: int | str) -> int:
    if isinstance(target, int):
        return target
    for container in pod.spec.containers:
        for port in container.ports:
            if port.name == target:
                return port.container_port
    raise DeployError(f"{pod.metadata.name} has no port named {target!r}")
