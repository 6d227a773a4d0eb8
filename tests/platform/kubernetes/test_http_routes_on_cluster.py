"""Traffic by the weights of an HTTPRoute, on a real API server: written over what was read."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster.behaviour import HEALTHY, crash_loop
from cluster.fixtures import Namespace
from cluster.gateway import Gateway, running_gateway
from support.real_runs import Runs

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.platform.base import (
    ConflictError,
    ForeignWeightsError,
    Weights,
    WeightsChangedError,
)
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform

pytestmark = pytest.mark.timeout(600)

MODEL = "llama-2-7b"
RELEASE = f"{MODEL}-production"
LONG, SHORT = timedelta(seconds=60), timedelta(seconds=2)
HALF = Weights.of_share(0.5)
ALL_STABLE = Weights(stable=1)


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def platform(namespace: Namespace, helm_binary: str) -> KubernetesPlatform:
    return namespace.platform(helm_binary)


@pytest.fixture
def gateway(namespace: Namespace) -> Iterator[Gateway]:
    with running_gateway(namespace) as gateway:
        yield gateway


def references(gateway: Gateway) -> list[tuple[str, int]]:
    (rule,) = gateway.route(RELEASE)["spec"]["rules"]
    return [(reference["name"], reference["weight"]) for reference in rule["backendRefs"]]


def test_weights_are_written_and_put_back_as_they_were(
    platform: KubernetesPlatform, production: Deployment, gateway: Gateway
) -> None:
    gateway.add_route(RELEASE)
    gateway.accept()
    before = gateway.route(RELEASE)["spec"]
    assert platform.weights(production) == ALL_STABLE

    platform.set_weights(production, HALF, expect=ALL_STABLE, timeout=LONG)
    assert references(gateway) == [(RELEASE, 5000), (f"{RELEASE}-canary", 5000)]

    platform.set_weights(production, ALL_STABLE, expect=None, timeout=LONG)
    assert gateway.route(RELEASE)["spec"] == before
    assert gateway.seen == [(1,), (5000, 5000), (1,)]


def test_weights_that_another_has_written_are_left_alone(
    platform: KubernetesPlatform, production: Deployment, gateway: Gateway
) -> None:
    gateway.add_route(RELEASE, weight=7)
    with pytest.raises(ForeignWeightsError, match=r"are 7:0, set by \S+, and were 1:0"):
        platform.set_weights(production, HALF, expect=ALL_STABLE, timeout=LONG)
    assert references(gateway) == [(RELEASE, 7)]


def test_a_route_that_changes_between_reading_and_writing_is_read_again(
    platform: KubernetesPlatform,
    production: Deployment,
    gateway: Gateway,
    namespace: Namespace,
) -> None:
    gateway.add_route(RELEASE)

    class Meanwhile:
        """Asked right before the write: by then another has written."""

        asked = 0

        def ensure(self) -> None:
            self.asked += 1
            if self.asked == 1:
                path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace.name}/httproutes"
                labels = {"metadata": {"labels": {"by": "another"}}}
                namespace.cluster.send("PATCH", f"{path}/{RELEASE}", labels).raise_for_status()

        def seconds_left(self) -> float:
            return 60.0

    guard = Meanwhile()
    platform.guard(guard)

    platform.set_weights(production, HALF, expect=ALL_STABLE, timeout=LONG)

    assert guard.asked == 2
    assert references(gateway) == [(RELEASE, 5000), (f"{RELEASE}-canary", 5000)]
    assert gateway.route(RELEASE)["metadata"]["labels"] == {"by": "another"}


def test_who_has_lost_the_lease_writes_no_weight(
    platform: KubernetesPlatform, production: Deployment, gateway: Gateway
) -> None:
    class Lost:
        def ensure(self) -> None:
            raise ConflictError("another has the lease")

        def seconds_left(self) -> float:
            return 0.0

    gateway.add_route(RELEASE)
    platform.guard(Lost())
    with pytest.raises(ConflictError, match="another has the lease"):
        platform.set_weights(production, HALF, expect=None, timeout=LONG)
    assert references(gateway) == [(RELEASE, 1)]


def test_weights_that_no_gateway_accepts_are_not_in_force(
    platform: KubernetesPlatform, production: Deployment, gateway: Gateway
) -> None:
    gateway.add_route(RELEASE)
    gateway.accept()
    gateway.on = False
    with pytest.raises(WeightsChangedError, match=r"example\.test/gateway has not processed it"):
        platform.set_weights(production, HALF, expect=ALL_STABLE, timeout=SHORT)


def test_without_a_route_that_a_gateway_has_taken_there_is_nothing_to_divide_by(
    platform: KubernetesPlatform, production: Deployment, gateway: Gateway
) -> None:
    with pytest.raises(UsageError, match=f"there is no HTTPRoute {RELEASE}") as told:
        platform.weights(production)
    assert "canary.by" in told.value.remedy
    gateway.on = False
    gateway.add_route(RELEASE)
    with pytest.raises(UsageError, match="no gateway has accepted the HTTPRoute"):
        platform.weights(production)


def test_each_side_is_reached_by_its_own_service_whatever_the_address_of_users_is(
    namespace: Namespace, production: Deployment, helm_binary: str
) -> None:
    namespace.behave(HEALTHY.serving(ttft_seconds="0.001", inter_token_seconds="0.001"))
    platform = namespace.platform(helm_binary, service_url="https://gateway.example.test/{model}")
    for number, side in enumerate((production, production.canary), start=1):
        build = platform.build(side, version(number))
        target = Target(build=build, values=version(number), replicas=1, capacity=1)
        platform.apply(side, target, description="one", timeout=LONG)
    (canary,) = namespace.cluster.kubelet.serving(namespace.name, production.canary.release)
    canary.turn(error_rate=1.0)

    def serves(side: Deployment) -> bool:
        with InferenceClient(platform.own_url(side), model=MODEL) as client:
            return client.complete("Hello", max_tokens=2, timeout_seconds=20).ok

    assert [serves(side) for side in (production, production.canary) * 2] == [True, False] * 2
    before = platform.path_errors(production)
    with (
        InferenceClient(platform.own_url(production), model=MODEL) as client,
        namespace.cluster.control_plane.away(),
    ):
        assert not client.complete("Hello", max_tokens=2, timeout_seconds=20).ok
    assert platform.path_errors(production).since(before)
    platform.close()


def version(number: int) -> dict[str, Any]:
    """Its image is named by digest: what stands in for staging runs none to compare with."""
    image = {"digest": "sha256:" + "5" * 64}
    return {"model": {"name": MODEL, "revision": f"v{number}"}, "image": image}


def test_a_rollout_by_traffic_and_one_that_is_undone(
    namespace: Namespace,
    production: Deployment,
    gateway: Gateway,
    helm_binary: str,
    tmp_path: Path,
) -> None:
    namespace.behave(HEALTHY)
    gateway.add_route(RELEASE)
    gateway.accept()
    platform = namespace.platform(helm_binary)
    runs = Runs(
        lambda: namespace.platform(helm_binary), production, version, tmp_path, by_traffic=True
    )
    first = runs.finish(1)
    assert first.wait() == ExitCode.OK, first.said  # nothing served before: no traffic is moved
    gateway.seen.clear()

    second = runs.finish(2)

    assert second.wait() == ExitCode.OK, second.said
    assert gateway.seen == [(5000, 5000), (0, 10_000), (1,)]
    assert platform.history(production.canary) == []
    build = platform.build(production, version(2)).digest
    assert [(r.build, r.ready) for r in platform.replicas(production)] == [(build, True)] * 2

    namespace.behave(
        lambda pod: (
            crash_loop("no such model")
            if "canary" in pod["metadata"]["labels"]["app.kubernetes.io/instance"]
            else HEALTHY
        )
    )
    third = replace(runs, deploy_timeout="20s").finish(3)

    assert third.wait() == ExitCode.GATE_FAILED, third.said
    assert "no such model" in third.said
    assert platform.weights(production) == ALL_STABLE
    assert platform.history(production.canary) == []
    assert [(r.build, r.ready) for r in platform.replicas(production)] == [(build, True)] * 2
