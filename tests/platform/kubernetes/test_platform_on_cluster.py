"""The platform on a real API server under both Helms: what is applied is what runs."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cluster.behaviour import HEALTHY, crash_loop
from cluster.fixtures import Namespace, eventually

from vllm_rollout.deployment import Deployment, RevisionStatus, Target
from vllm_rollout.errors import DeployError
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform
from vllm_rollout.resources import CHARTS

pytestmark = pytest.mark.cluster

MODEL = "llama-2-7b"
LONG, SHORT = timedelta(seconds=60), timedelta(seconds=3)


@pytest.fixture
def platform(namespace: Namespace, helm_binary: str) -> KubernetesPlatform:
    return KubernetesPlatform(
        namespace=namespace.name,
        context=None,
        chart=CHARTS / "vllm-deployment",
        service_url="http://{model}-{environment}.{namespace}:8000",
        helm=helm_binary,
    )


@pytest.fixture
def production(namespace: Namespace) -> Deployment:
    return Deployment(MODEL, "production", namespace.name)


@pytest.fixture
def apply(platform: KubernetesPlatform, production: Deployment) -> Callable[..., Any]:
    def apply(values: dict[str, Any], replicas: int = 2, *, within: timedelta = LONG) -> Any:
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=replicas, capacity=2)
        return platform.apply(production, target, description="a test", timeout=within)

    return apply


def made_of(version: str) -> dict[str, Any]:
    return {"model": {"name": MODEL, "revision": version}}


def test_a_release_is_ramped_described_and_rolled_back(
    platform: KubernetesPlatform, production: Deployment, apply: Callable[..., Any]
) -> None:
    first = apply(made_of("one"))
    assert (first.status, first.replicas) == (RevisionStatus.DEPLOYED, 2)
    assert [replica.ready for replica in platform.replicas(production)] == [True, True]

    half = apply(made_of("two"), replicas=1)
    builds = sorted(replica.build for replica in platform.replicas(production))
    assert builds == sorted([first.build.digest, half.build.digest])

    whole = apply(made_of("two"))
    assert {replica.build for replica in platform.replicas(production)} == {whole.build.digest}
    assert [entry.description for entry in platform.history(production)] == ["a test"] * 3

    back = platform.rollback(production, first.number, description="it broke", timeout=LONG)
    assert back.build == first.build
    assert {replica.build for replica in platform.replicas(production)} == {first.build.digest}


def test_what_does_not_come_up_is_undone_and_says_what_its_pods_said(
    namespace: Namespace,
    platform: KubernetesPlatform,
    production: Deployment,
    apply: Callable[..., Any],
) -> None:
    first = apply(made_of("one"))
    running = {replica.name for replica in platform.replicas(production)}
    broken = crash_loop("torch.OutOfMemoryError: CUDA out of memory\n")
    namespace.behave(lambda pod: HEALTHY if pod["metadata"]["name"] in running else broken)

    with pytest.raises(DeployError) as caught:
        apply(made_of("two"), within=SHORT)

    assert "CrashLoopBackOff" in str(caught.value)
    assert "CUDA out of memory" in str(caught.value)
    history = platform.history(production)
    assert [entry.status for entry in history[1:]] == [
        RevisionStatus.FAILED,
        RevisionStatus.DEPLOYED,
    ]
    assert history[-1].build == first.build
    eventually(lambda: {r.name for r in platform.replicas(production)} == running)
