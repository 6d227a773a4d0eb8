"""Paths to deployments from here: by the Service's name, or by a tunnel to the pods."""

import os
import socket
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.platform.base import PathErrors, Route
from vllm_rollout.platform.kubernetes.api import KubernetesApi

if TYPE_CHECKING:
    from vllm_rollout.platform.kubernetes.port_forward import PortForward

Reach = Literal["auto", "service", "tunnel"]

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
_DEFAULT_PORT = {"http": 80, "https": 443}


class Paths:
    """Finds the path to each deployment, once, and keeps tunnels open until this process ends.

    `service_url` may name `{model}`, `{environment}`, `{namespace}` and `{release}`. With `auto` a
    tunnel is taken where the URL is a Service's name (`….svc…`) that means nothing here.
    """

    def __init__(self, service_url: str, reach: Reach) -> None:
        self._service_url = service_url
        self._reach = reach
        self._resolved: dict[str, bool] = {}
        self._tunnels: dict[tuple[Deployment, str], PortForward] = {}

    def route(self, deployment: Deployment) -> Route:
        """The Service's URL, and how it is reached. Opens nothing."""
        how = "by a tunnel through the API server" if self._by_tunnel(deployment) else ""
        return Route(url=self._url(deployment), how=how)

    def url(self, deployment: Deployment, api: KubernetesApi) -> str:
        """The URL to connect to, without a trailing slash.

        Raises: as `release_port_forward`, where one is needed.
        """
        url = self._url(deployment)
        if not self._by_tunnel(deployment):
            return url
        return self._tunnel(deployment, api) + urlsplit(url).path

    def pod_url(self, deployment: Deployment, api: KubernetesApi, pod: str) -> str:
        """The URL of a tunnel to this one pod, without a trailing slash. Raises: as `url`."""
        return self._tunnel(deployment, api, pod)

    def _tunnel(self, deployment: Deployment, api: KubernetesApi, pod: str = "") -> str:
        if (deployment, pod) not in self._tunnels:
            # Brings a whole HTTP library, which only a tunnel needs.
            from vllm_rollout.platform.kubernetes.release_port_forward import release_port_forward

            parts = urlsplit(self._url(deployment))
            self._tunnels[deployment, pod] = release_port_forward(
                api,
                deployment,
                service=(parts.hostname or "").split(".")[0],
                port=parts.port or _DEFAULT_PORT[parts.scheme],
                pod=pod,
            )
        return self._tunnels[deployment, pod].url

    def path_errors(self, deployment: Deployment) -> PathErrors:
        """Return the errors of the tunnels to the deployment; none where there is no tunnel."""
        errors = [t.errors for (whose, _), t in self._tunnels.items() if whose == deployment]
        return sum(errors, PathErrors())

    def record_error(self, deployment: Deployment, what: str) -> None:
        """Record that the API server failed elsewhere: no tunnel through it is any better."""
        if tunnel := self._tunnels.get((deployment, "")):
            tunnel.record_error(what)

    def close(self) -> None:
        """Close every tunnel."""
        while self._tunnels:
            self._tunnels.popitem()[1].close()

    def _url(self, deployment: Deployment) -> str:
        return self._service_url.format(
            model=deployment.model,
            environment=deployment.environment,
            namespace=deployment.namespace,
            release=deployment.release,
        ).rstrip("/")

    def _by_tunnel(self, deployment: Deployment) -> bool:
        if self._reach != "auto":
            return self._reach == "tunnel"
        host = urlsplit(self._url(deployment)).hostname or ""
        return "svc" in host.split(".") and _IN_CLUSTER not in os.environ and not self._has(host)

    def _has(self, host: str) -> bool:
        """Return True if the name resolves here; asked once."""
        if host not in self._resolved:
            try:
                self._resolved[host] = bool(socket.getaddrinfo(host, None))
            except OSError:
                self._resolved[host] = False
        return self._resolved[host]
