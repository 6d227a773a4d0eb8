"""A real Kubernetes control plane on loopback: etcd, API server and controller manager.

TLS and RBAC are on. There is no scheduler and no kubelet: `cluster.kubelet` stands for both.
"""

import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import trustme
import yaml
from cluster.required import required_tool

from vllm_rollout.load.process_group import ProcessGroup
from vllm_rollout.ports import free_port

_READY_SECONDS = 60.0
_CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "garbage-collector-controller",
    "resourcequota-controller",
    "disruption-controller",
    "job-controller",
    "statefulset-controller",
    "persistentvolume-binder-controller",
)


class ControlPlane:
    """Starts the three programs and ends them with the `with` block, or with this process.

    `url` is the API server's; `kubeconfig` writes a file that reaches it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA(organization_name="vllm-rollout tests")
        self._ca_file = folder / "ca.pem"
        self._etcd_port, self._api_port = free_port(), free_port()
        self._stack = ExitStack()
        self._api_server: ProcessGroup | None = None
        self._manager: ProcessGroup | None = None

    @property
    def url(self) -> str:
        """Base URL of the API server."""
        return f"https://127.0.0.1:{self._api_port}"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca.cert_pem.write_to_path(str(self._ca_file))
        for name, organization in (
            ("kube-apiserver", "kubernetes"),
            ("admin", "system:masters"),
            ("system:kube-controller-manager", "system:masters"),
            ("service-accounts", "kubernetes"),
            ("kubelet", "system:nodes"),
        ):
            self.issue(name, organization)
        try:
            self._start("etcd", "etcd", self._etcd_options())
            with httpx.Client(base_url=f"http://127.0.0.1:{self._etcd_port}") as client:
                wait_until_ok(client, "/health")
            self.start_api_server()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_api_server(self) -> None:
        """Start the API server, at the port it always has, and wait until it is ready.

        With it begins a new controller manager: one that lost its connection takes up to a minute
        to look again.
        """
        self._api_server = self._start("kube-apiserver", "apiserver", self._api_server_options())
        with self.client("admin") as client:
            wait_until_ok(client, "/readyz")
        if self._manager is not None:
            self._manager.end()
        kubeconfig = self.kubeconfig("controller-manager", user="system:kube-controller-manager")
        self._manager = self._start(
            "kube-controller-manager", "controller-manager", self._manager_options(kubeconfig)
        )

    def stop_api_server(self) -> None:
        """End the API server; what it stored stays."""
        if self._api_server is not None:
            self._api_server.end()

    @contextmanager
    def away(self) -> Iterator[None]:
        """The API server is away, and back afterwards whatever happens."""
        with self.back_in_the_end():
            self.stop_api_server()
            yield

    @contextmanager
    def back_in_the_end(self) -> Iterator[None]:
        """Whatever becomes of the API server meanwhile, it is there afterwards."""
        try:
            yield
        finally:
            if self._api_server is None or not self._api_server.running:
                self.start_api_server()

    def kubeconfig(
        self, name: str, *, user: str = "", token: str = "", server: str = "", namespace: str = ""
    ) -> Path:
        """Write a kubeconfig for a certificate that was issued, or for a bearer token."""
        credentials: dict[str, object] = {"token": token} if token else {}
        if user:
            pem = str(self._pem(user))
            credentials = {"client-certificate": pem, "client-key": pem}
        cluster = {
            "server": server or self.url,
            "certificate-authority": str(self._ca_file),
        }
        path = self.folder / f"{name}.kubeconfig"
        return write_kubeconfig(path, cluster, credentials, namespace=namespace)

    def client(self, user: str) -> httpx.Client:
        """The API as the holder of a certificate that was issued."""
        return httpx.Client(base_url=self.url, verify=self.tls(user), timeout=30)

    def tls(self, user: str = "") -> ssl.SSLContext:
        """How to connect: as the holder of a certificate that was issued, or as nobody yet."""
        context = ssl.create_default_context(cafile=str(self._ca_file))
        if user:
            context.load_cert_chain(self._pem(user), self._pem(user))
        return context

    def ask(self, method: str, path: str, *, token: str) -> httpx.Response:
        """Call the API with a bearer token; the body of a POST is an empty object."""
        return httpx.request(
            method,
            self.url + path,
            headers={"Authorization": f"Bearer {token}"},
            json={} if method == "POST" else None,
            verify=self.tls(),
        )

    def issue(self, name: str, organization: str) -> Path:
        """A file with a key and its certificate, for serving on 127.0.0.1 and for clients."""
        leaf = self.ca.issue_cert(
            "127.0.0.1", "localhost", common_name=name, organization_name=organization
        )
        path = self._pem(name)
        leaf.private_key_and_cert_chain_pem.write_to_path(str(path))
        path.chmod(0o600)
        return path

    def _pem(self, name: str) -> Path:
        return self.folder / f"{name.replace(':', '-')}.pem"

    def _start(self, tool: str, log: str, options: dict[str, object]) -> ProcessGroup:
        arguments = [f"--{name}={value}" for name, value in options.items()]
        # Ends also when this process is killed, which no `finally` outlives.
        tied = ["setpriv", "--pdeathsig", "KILL", required_tool(tool), *arguments]
        # More memory for less CPU time: garbage is collected half as often.
        group = ProcessGroup(
            tied,
            env={"PATH": "/usr/bin:/bin", "GOGC": "200"},
            cwd=self.folder,
            log=self.folder / f"{log}.log",
        )
        return self._stack.enter_context(group)

    def _etcd_options(self) -> dict[str, object]:
        url, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, free_port()))
        return {
            "data-dir": self.folder / "etcd",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api_server_options(self) -> dict[str, object]:
        serving, accounts, kubelet = (
            self._pem(name) for name in ("kube-apiserver", "service-accounts", "kubelet")
        )
        return {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": "127.0.0.1",
            "secure-port": self._api_port,
            "advertise-address": "192.0.2.1",
            "endpoint-reconciler-type": "none",
            "tls-cert-file": serving,
            "tls-private-key-file": serving,
            "client-ca-file": self._ca_file,
            "authorization-mode": "RBAC",
            "service-cluster-ip-range": "198.51.100.0/24",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": accounts,
            "service-account-signing-key-file": accounts,
            "kubelet-certificate-authority": self._ca_file,
            "kubelet-client-certificate": kubelet,
            "kubelet-client-key": kubelet,
        }

    def _manager_options(self, kubeconfig: Path) -> dict[str, object]:
        return {
            "kubeconfig": kubeconfig,
            "controllers": ",".join(_CONTROLLERS),
            "use-service-account-credentials": "false",
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "secure-port": free_port(),
            "cert-dir": self.folder / "controller-manager",
            "kube-api-qps": "200",
            "kube-api-burst": "400",
        }


def write_kubeconfig(path: Path, cluster: object, credentials: object, *, namespace: str) -> Path:
    """Write a kubeconfig of one context, which is the current one; gives the path."""
    context = {"cluster": "test", "user": "test", "namespace": namespace or "default"}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": credentials}],
                "contexts": [{"name": "test", "context": context}],
            }
        )
    )
    path.chmod(0o600)
    return path


def wait_until_ok(client: httpx.Client, path: str) -> None:
    """Return when the path answers 200.

    Raises:
        TimeoutError: it did not within a minute.
    """
    until = time.monotonic() + _READY_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if client.get(path).status_code == httpx.codes.OK:
                return
        if time.monotonic() > until:
            raise TimeoutError(f"{client.base_url}{path} was not ready in {_READY_SECONDS:g} s")
        time.sleep(0.05)
