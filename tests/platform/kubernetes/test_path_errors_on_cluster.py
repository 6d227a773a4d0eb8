"""A tunnel tells what is the API server's doing from what is the deployment's."""

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from cluster.behaviour import HEALTHY, unready
from cluster.faulty import FaultyDoor, Refusal
from cluster.fixtures import Namespace, eventually

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform

MODEL = "llama-2-7b"


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def platform(
    namespace: Namespace, helm_binary: str, production: Deployment
) -> Iterator[KubernetesPlatform]:
    """Production serves by two pods, and a tunnel to them is open."""
    namespace.behave(HEALTHY.serving(ttft_seconds="0.001", inter_token_seconds="0.02"))
    platform = namespace.platform(helm_binary)
    values = {"model": {"name": MODEL}}
    target = Target(build=platform.build(production, values), values=values, replicas=2, capacity=2)
    platform.apply(production, target, description="one", timeout=timedelta(seconds=60))
    eventually(lambda: probed(platform, production) == (0, None))
    yield platform
    platform.close()


def probed(
    platform: KubernetesPlatform, deployment: Deployment
) -> tuple[int, UnreachableError | None]:
    """How many of four probes failed, and what ailed the way meanwhile."""
    with InferenceClient(platform.base_url(deployment), model=MODEL) as client:
        before = platform.path_errors(deployment)
        seen = probe(client, count=4, timeout_seconds=20)
        return seen.failures, platform.path_errors(deployment).since(before)


def test_an_api_server_that_is_away_is_the_paths_error(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    control_plane = namespace.cluster.control_plane
    control_plane.stop_api_server()
    try:
        failures, error = probed(platform, production)
    finally:
        control_plane.start_api_server()
    assert failures == 4
    assert error is not None
    assert error.address == control_plane.url
    eventually(lambda: probed(platform, production)[0] == 0)


def test_an_answer_that_the_api_server_cuts_is_the_paths_error(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    control_plane = namespace.cluster.control_plane
    url = f"{platform.base_url(production)}/v1/completions"
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": 2000, "stream": True}
    before = platform.path_errors(production)
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data:")
        control_plane.stop_api_server()
        with pytest.raises(httpx.TransportError):
            list(lines)
    control_plane.start_api_server()
    error = platform.path_errors(production).since(before)
    assert error is not None
    assert "cut a connection" in str(error)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "log in again"), (403, "verb 'create' on 'pods/portforward"), (429, "overloaded")],
)
@pytest.mark.usefixtures("platform")
def test_a_refusal_is_the_paths_error_and_says_what_to_do(
    namespace: Namespace,
    production: Deployment,
    helm_binary: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: str,
) -> None:
    def refuse(_method: str, path: str) -> Refusal | None:
        return (status, {"Retry-After": "0"}) if "/portforward" in path else None

    with FaultyDoor(namespace.cluster, refuse) as door:
        control_plane = namespace.cluster.control_plane
        path = control_plane.kubeconfig("door", server=door.url, namespace=namespace.name)
        monkeypatch.setenv("KUBECONFIG", str(path))
        refused = namespace.platform(helm_binary)
        failures, error = probed(refused, production)
        refused.close()
    assert failures == 4
    assert error is not None
    assert said in str(error)
    assert error.address == door.url


def test_a_dead_pod_behind_a_healthy_api_server_is_the_deployments_own(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    for server in namespace.cluster.kubelet.serving(namespace.name, production.release):
        server.close()
    assert probed(platform, production) == (4, None)


def test_a_pod_that_dies_in_mid_answer_is_the_deployments_own(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    for server in namespace.cluster.kubelet.serving(namespace.name, production.release):
        server.turn(truncated_rate=1.0)
    with InferenceClient(platform.base_url(production), model=MODEL) as client:
        before = platform.path_errors(production)
        answer = client.complete("Hello", max_tokens=50, timeout_seconds=20, stream=True)
    assert answer.outcome in (RequestOutcome.TRUNCATED, RequestOutcome.CONNECTION)
    assert platform.path_errors(production).since(before) is None


def test_pods_that_are_not_ready_are_the_deployments_own(
    namespace: Namespace, platform: KubernetesPlatform, production: Deployment
) -> None:
    namespace.behave(unready())
    eventually(lambda: not any(r.ready for r in platform.replicas(production)))
    eventually(lambda: probed(platform, production) == (4, None))
