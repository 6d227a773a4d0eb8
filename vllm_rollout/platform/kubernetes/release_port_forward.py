"""A tunnel to a release: each connection goes to the next ready pod, as a Service would have it.

Or to one pod alone.
"""

import itertools
import time
from collections.abc import Mapping, Sequence

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.kubernetes.api import TIMEOUT_SECONDS, KubernetesApi
from vllm_rollout.platform.kubernetes.pod_reader import list_release
from vllm_rollout.platform.kubernetes.pods import Pod, replica_of, serving
from vllm_rollout.platform.kubernetes.port_forward import PortForward

_PODS_FRESH_SECONDS = 1.0


def release_port_forward(
    api: KubernetesApi, deployment: Deployment, *, service: str, port: int, pod: str = ""
) -> PortForward:
    """A tunnel to the ready pods of a release, or to that of the name; `port` is the Service's.

    Raises:
        NotFoundError, UnreachableError: the Service cannot be read.
    """
    target, selector = _target_of(api, deployment.namespace, service, port)
    return PortForward(
        api,
        namespace=deployment.namespace,
        choose=_ReadyPods(api, deployment, target, selector, pod).choose,
        destination=f"{deployment} {pod}".rstrip(),
    )


class _ReadyPods:
    """The ready pods behind a release's Service in turn; the list is not older than a second.

    They are those that its selector names: a router's, say. Without one, the release's replicas.
    """

    def __init__(
        self,
        api: KubernetesApi,
        deployment: Deployment,
        target: int | str,
        selector: Mapping[str, str],
        only: str,
    ) -> None:
        self._api = api
        self._deployment = deployment
        self._target = target
        self._selector = selector
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
            everything = list_release(self._api, self._deployment)
            self._pods = [p for p in self._behind(everything) if replica_of(p).ready]
            self._looked = time.monotonic()
        pods = self._pods
        if not pods:
            raise DeployError(f"no pod of {self._deployment} is ready")
        pod = pods[next(self._turn) % len(pods)]
        return pod.metadata.name, _port_of(pod, self._target)

    def _behind(self, pods: Sequence[Pod]) -> Sequence[Pod]:
        if self._only:
            return [pod for pod in pods if pod.metadata.name == self._only]
        if not self._selector:
            return serving(pods)
        wanted = self._selector.items()
        return [pod for pod in pods if pod.serves and wanted <= pod.metadata.labels.items()]


def _target_of(
    api: KubernetesApi, namespace: str, service: str, port: int
) -> tuple[int | str, Mapping[str, str]]:
    """The number, or the name, of the pods' port behind the Service's `port`, and its selector."""
    with api.doing("get", f"services {service} in namespace {namespace}"):
        found = api.core.read_namespaced_service(
            service, namespace, _request_timeout=TIMEOUT_SECONDS
        )
    for entry in found.spec.ports or ():
        if entry.port == port:
            target: int | str = entry.target_port or port
            return target, found.spec.selector or {}
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
