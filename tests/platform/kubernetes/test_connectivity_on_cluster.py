"""A deployment is reached by its Service's name, or by a tunnel through a real API server."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from cluster.behaviour import HEALTHY, unready
from cluster.cut import CutWire
from cluster.fixtures import Namespace, eventually

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import DeployError, UnreachableError
from vllm_rollout.model.live_figures import FigureName
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.platform.kubernetes.api import connect
from vllm_rollout.platform.kubernetes.connectivity import Paths, Reach
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.platform.kubernetes.release_port_forward import release_port_forward
from vllm_rollout.policy import load_policy

MODEL = "llama-2-7b"
SERVICE = "http://{model}-{environment}.{namespace}.svc.cluster.local:8000"


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def platform(namespace: Namespace, helm_binary: str) -> Iterator[KubernetesPlatform]:
    platform = namespace.platform(helm_binary)
    yield platform
    platform.close()


def deploy(platform: KubernetesPlatform, deployment: Deployment) -> None:
    values = {"model": {"name": MODEL}}
    target = Target(build=platform.build(deployment, values), values=values, replicas=2, capacity=2)
    platform.apply(deployment, target, description="one", timeout=timedelta(seconds=60))


def answered(url: str) -> float:
    """How many requests the server has answered."""
    text = httpx.get(f"{url}/metrics").text
    done = [line for line in text.splitlines() if "vllm:request_success_total{" in line]
    return sum(float(line.split()[-1]) for line in done)


def test_a_tunnel_reaches_every_ready_pod_in_turn(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    namespace.behave(HEALTHY.serving(ttft_seconds="0.001", inter_token_seconds="0.001"))
    deploy(platform, production)
    route = platform.route(production)
    assert str(route) == (
        f"http://{MODEL}-production.{namespace.name}.svc.cluster.local:8000, "
        "by a tunnel through the API server"
    )
    url = platform.base_url(production)
    assert url.startswith("http://127.0.0.1:")
    assert platform.base_url(production) == url
    kubelet = namespace.cluster.kubelet
    servers = kubelet.serving(namespace.name, production.release)
    assert len(servers) == 2

    def ask(_: int) -> bool:
        with InferenceClient(url, model=MODEL) as client:
            whole = client.complete("Hello", max_tokens=200, timeout_seconds=20)
            streamed = client.complete("Hello", max_tokens=50, timeout_seconds=20, stream=True)
        return whole.ok and streamed.ok

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(ask, range(60)))
    for server in servers:
        assert answered(server.url) >= 40


def test_each_ready_pod_has_a_tunnel_of_its_own(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    namespace.behave(HEALTHY.serving(ttft_seconds="0.001", inter_token_seconds="0.001"))
    deploy(platform, production)
    replicas = platform.replicas(production)
    urls = {replica.name: platform.replica_url(production, replica) for replica in replicas}
    servers = namespace.cluster.kubelet.serving(namespace.name, production.release)
    assert len(set(urls.values())) == len(servers) == 2
    for times, url in enumerate(urls.values(), 1):
        with InferenceClient(url, model=MODEL, fresh=True) as client:
            for _ in range(times):
                assert client.greet(max_tokens=1, timeout_seconds=20).ok

    assert sorted(answered(server.url) for server in servers) == [1, 2]
    with LiveFigures(load_policy(None), platform, pause_seconds=0.1) as live:
        (side,) = live.read(production, window=timedelta(minutes=1), now=datetime.now(UTC))
    assert side.figures[FigureName.QUEUE].source == "/metrics of 2 replicas"
    assert side.figures[FigureName.REQUEST_RATE].value == 0
    assert "install metrics-server" in side.figures[FigureName.CPU].unknown
    assert not platform.path_errors(production).count

    # A Service's tunnel goes to the pods that it selects, and past none of them.
    label = {"metadata": {"labels": {"picked": "yes"}}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{replicas[0].name}"
    namespace.cluster.send("PATCH", path, label).raise_for_status()
    spec = {"selector": {"picked": "yes"}, "ports": [{"port": 80, "targetPort": 8000}]}
    namespace.create("services", {"metadata": {"name": "picked"}, "spec": spec})
    tunnel = release_port_forward(connect(None), production, service="picked", port=80)
    with closing(tunnel), InferenceClient(tunnel.url, model=MODEL, fresh=True) as client:
        for _ in range(3):
            assert client.greet(max_tokens=1, timeout_seconds=20).ok
    assert sorted(answered(server.url) for server in servers) == [2, 4]


def test_pods_that_are_not_ready_are_not_reached(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    namespace.behave(HEALTHY.serving())
    deploy(platform, production)
    url = platform.base_url(production)
    assert httpx.get(f"{url}/health").status_code == 200
    namespace.behave(unready())
    eventually(lambda: not any(r.ready for r in platform.replicas(production)))

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    eventually(lambda: not answers())
    namespace.behave(HEALTHY.serving())
    eventually(answers)


def test_a_closed_tunnel_leaves_no_connection_though_the_api_server_is_silent(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment, wire: CutWire
) -> None:
    namespace.behave(HEALTHY.serving())
    deploy(platform, production)
    tunnel = release_port_forward(
        connect(None), production, service=f"{MODEL}-production", port=8000
    )

    def connections() -> int:
        ends = psutil.Process().net_connections("tcp")
        return sum(bool(end.raddr) and end.raddr.port == urlsplit(wire.url).port for end in ends)

    without = connections()
    with httpx.Client() as client:
        assert client.get(f"{tunnel.url}/health").status_code == 200
        assert connections() == without + 1
        wire.fall_silent()
        tunnel.close()
    assert connections() == without


def test_a_service_that_is_not_there_is_said(
    platform: KubernetesPlatform, production: Deployment
) -> None:
    with pytest.raises(DeployError, match=f"services {MODEL}-production"):
        platform.base_url(production)


@pytest.mark.parametrize(
    ("reach", "url", "tunnelled"),
    [
        ("auto", "http://localhost:8000", False),
        ("auto", "https://llm.example/{model}", False),
        ("auto", SERVICE, True),
        ("service", SERVICE, False),
        ("tunnel", "http://{model}:8000", True),
    ],
)
def test_the_way_is_chosen_and_said(reach: Reach, url: str, *, tunnelled: bool) -> None:
    route = Paths(url, reach).route(Deployment(MODEL, "production"))
    assert ("tunnel" in str(route)) is tunnelled


def test_inside_the_cluster_the_service_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert Paths(SERVICE, "auto").route(Deployment(MODEL, "production")).how == ""


def test_a_service_whose_name_resolves_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolves(host: str, _port: object) -> list[str]:
        assert host == f"{MODEL}-production.system.svc.cluster.local"
        return [host]

    monkeypatch.setattr(socket, "getaddrinfo", resolves)
    assert Paths(SERVICE, "auto").route(Deployment(MODEL, "production")).how == ""


def test_a_tunnel_without_a_cluster_is_unreachable(
    namespace: Namespace, platform: KubernetesPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = namespace.cluster.control_plane
    dead = control.kubeconfig("dead", user="admin", server="https://127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", str(dead))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        platform.base_url(Deployment(MODEL, "production", namespace.name))
