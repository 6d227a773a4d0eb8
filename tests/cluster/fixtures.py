"""The fixtures of a real control plane: one per test process, a namespace per test."""

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster.behaviour import Behaviour
from cluster.control_plane import ControlPlane
from cluster.cut import CutWire, cut_wire
from cluster.existing import ExistingControlPlane
from cluster.kubelet import Choose, Kubelet
from cluster.services import Services

from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.resources import CHARTS

_PATIENCE_SECONDS = 60.0
_GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """The control plane, the API as the administrator, and the pods' kubelet."""

    control_plane: ControlPlane | ExistingControlPlane
    api: httpx.Client
    kubelet: Kubelet
    services: Services

    def add_node(self, name: str, *, gpus: int, labels: dict[str, str] | None = None) -> None:
        """A node with so many GPUs, tainted for pods that ask for one."""
        node = {"metadata": {"name": name, "labels": labels or {}}}
        self.send("POST", "/api/v1/nodes", node).raise_for_status()
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        self.kubelet.join(name, conditions)
        resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
        status = {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet.port}},
            "conditions": conditions,
        }
        self.send("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}).raise_for_status()
        # Admission has tainted the node as not ready; a node controller would take that back.
        taints = {"spec": {"taints": [_GPU_TAINT]}}
        self.send("PATCH", f"/api/v1/nodes/{name}", taints).raise_for_status()

    def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Call the API as the administrator; a PATCH is a merge patch."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return self.api.request(method, path, json=body, headers={"Content-Type": kind})


@dataclass(frozen=True, slots=True)
class Namespace:
    """A test's own namespace, which is deleted after it."""

    cluster: Cluster
    name: str
    kubeconfig: Path

    def platform(self, helm: str, **changes: Any) -> KubernetesPlatform:
        """The platform that keeps everything here, by that Helm, of the suite's own chart."""
        usual = {
            "namespace": self.name,
            "context": None,
            "chart": CHARTS / "vllm-deployment",
            "service_url": "http://{model}-{environment}.{namespace}.svc.cluster.local:8000",
        }
        return KubernetesPlatform(helm=helm, **(usual | changes))

    def install(self, helm: str, release: str, chart: str, *options: str) -> None:
        """Install one of the suite's charts here by that Helm, as the administrator."""
        subprocess.run(
            [helm, "install", release, str(CHARTS / chart), "-n", self.name, *options],
            check=True,
            capture_output=True,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )

    def behave(self, choose: Choose | Behaviour) -> None:
        """How the pods of this namespace behave."""
        self.cluster.kubelet.behave(self.name, choose)

    def list(self, resource: str, group: str = "api/v1") -> list[Any]:
        """All objects of a kind, for example `list("deployments", "apis/apps/v1")`."""
        answer = self.cluster.api.get(f"/{group}/namespaces/{self.name}/{resource}")
        answer.raise_for_status()
        items: list[Any] = answer.json()["items"]
        return items

    def create(self, resource: str, body: Any, group: str = "api/v1") -> None:
        """Create an object."""
        path = f"/{group}/namespaces/{self.name}/{resource}"
        self.cluster.send("POST", path, body).raise_for_status()

    def token(self, service_account: str) -> str:
        """A bearer token of a service account here."""
        path = f"/api/v1/namespaces/{self.name}/serviceaccounts/{service_account}/token"
        answer = self.cluster.send("POST", path, {"spec": {}})
        answer.raise_for_status()
        return str(answer.json()["status"]["token"])


def eventually(holds: Callable[[], bool], *, within_seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until `holds`; the time is a limit for what hangs, not a measurement."""
    until = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < until, f"not within {within_seconds:g} s"
        time.sleep(0.05)


def _control_plane(folder: Path) -> ControlPlane | ExistingControlPlane:
    existing = os.environ.get("VLLM_ROLLOUT_TEST_KUBECONFIG")
    return ExistingControlPlane(folder, Path(existing)) if existing else ControlPlane(folder)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A real control plane, up in seconds, with a node; its files are in `folder`."""
    with (
        _control_plane(folder) as control_plane,
        control_plane.client("admin") as api,
    ):
        kubelet = Kubelet(control_plane, control_plane.issue("node", "nodes"))
        services = Services(
            lambda namespace, release: [s.url for s in kubelet.serving(namespace, release)]
        )
        try:
            cluster = Cluster(control_plane, api, kubelet, services)
            node = f"gpu-{secrets.token_hex(4)}"
            cluster.add_node(node, gpus=64)
            yield cluster
            cluster.send("DELETE", f"/api/v1/nodes/{node}")
            assert kubelet.failures == []
        finally:
            services.close()
            kubelet.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane for all tests of this process."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@contextmanager
def namespace_of(cluster: Cluster, name: str) -> Iterator[Namespace]:
    """A namespace, with all rights in it; deleted afterwards."""
    cluster.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).raise_for_status()
    cluster.kubelet.adopt(name)
    kubeconfig = cluster.control_plane.kubeconfig(name, user="admin", namespace=name)
    created = Namespace(cluster, name, kubeconfig)
    # Pods are refused until the namespace has its service account.
    eventually(lambda: bool(created.list("serviceaccounts")))
    yield created
    cluster.send("DELETE", f"/api/v1/namespaces/{name}")
    cluster.kubelet.leave(name)


@pytest.fixture
def namespace(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A namespace of the test's own; KUBECONFIG points at it with all rights."""
    with namespace_of(cluster, f"test-{secrets.token_hex(4)}") as created:
        monkeypatch.setenv("KUBECONFIG", str(created.kubeconfig))
        yield created


@pytest.fixture
def wire(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[CutWire]:
    """KUBECONFIG reaches the namespace by this wire."""
    control_plane = namespace.cluster.control_plane
    with cut_wire(control_plane.url) as wire:
        path = control_plane.kubeconfig(
            "wire", user="admin", server=wire.url, namespace=namespace.name
        )
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield wire
