"""Releases that an autoscaler scales, on a real control plane: no change takes pods away."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from cluster.fixtures import Namespace, eventually
from cluster.required import required_tool

from vllm_rollout.model.deployment import Deployment, Revision, Target
from vllm_rollout.platform.base import ForeignChangeError, changed_objects
from vllm_rollout.platform.kubernetes.platform import KubernetesPlatform

pytestmark = pytest.mark.cluster
MODEL = "llama-2-7b"
MINUTE = timedelta(seconds=60)
APPS, SCALERS = "apis/apps/v1", ("horizontalpodautoscalers", "apis/autoscaling/v2")


class Scaled:
    """Production of a namespace, which an autoscaler scales; `scale` is what that would do."""

    def __init__(self, namespace: Namespace, platform: KubernetesPlatform) -> None:
        self.namespace, self.platform = namespace, platform
        self.production = Deployment(MODEL, "production", namespace.name)

    def apply(self, version: str, replicas: int, capacity: int, **scaling: Any) -> Revision:
        values = {"model": {"name": MODEL, "revision": version}, "autoscaling": scaling}
        target = Target(
            build=self.platform.build(self.production, values),
            values=values,
            replicas=replicas,
            capacity=capacity,
        )
        return self.platform.apply(self.production, target, description=version, timeout=MINUTE)

    def scale(self, pods: int, *, ready: int) -> None:
        where = f"/{APPS}/namespaces/{self.namespace.name}/deployments/{self.production.release}"
        query = "fieldManager=kube-controller-manager"
        body = {"spec": {"replicas": pods}}
        answer = self.namespace.cluster.send("PATCH", f"{where}/scale?{query}", body)
        answer.raise_for_status()
        eventually(lambda: self.ready == ready)

    @property
    def ready(self) -> int:
        return sum(replica.ready for replica in self.platform.replicas(self.production))

    @property
    def pods(self) -> dict[str, int]:
        found = self.namespace.list("deployments", APPS)
        return {each["metadata"]["name"]: each["spec"]["replicas"] for each in found}

    @contextmanager
    def never_below(self, pods: int) -> Iterator[None]:
        seen, done = [self.ready], threading.Event()

        def look() -> None:
            while not done.wait(0.2):
                seen.append(self.ready)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            done.set()
            looking.join()
        assert min(seen) >= pods


@pytest.fixture
def scaled(namespace: Namespace) -> Scaled:
    return Scaled(namespace, namespace.platform(required_tool("helm4")))


def test_steps_and_rollbacks_go_by_the_number_that_the_autoscaler_asks_for(
    scaled: Scaled, namespace: Namespace
) -> None:
    own = {"enabled": True, "minReplicas": 1, "maxReplicas": 8}
    stable = f"{MODEL}-production"
    first = scaled.apply("one", 2, 2)
    assert (first.replicas, first.capacity, scaled.pods) == (2, 2, {stable: 2})

    with scaled.never_below(2):  # the number is the autoscaler's from now on, and stays
        second = scaled.apply("two", 2, 2, **own)
    scaled.scale(5, ready=5)
    with scaled.never_below(5):
        step = scaled.apply("three", 1, 2, **own)
        assert (step.replicas, step.capacity) == (3, 5)
        assert scaled.pods == {stable: 2, f"{stable}-canary": 3}
        (scaler,) = namespace.list(*SCALERS)
        assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 5)
        left = scaled.platform.live_objects(scaled.production)
        scaled.scale(4, ready=7)  # in a hold
        assert changed_objects(left, scaled.platform.live_objects(scaled.production)) == []
        assert scaled.platform.history(scaled.production)[-1].capacity == 7
    scaled.platform.rollback(scaled.production, second.number, description="", timeout=MINUTE)
    assert scaled.pods == {stable: 7}
    (scaler,) = namespace.list(*SCALERS)
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 8)
    back = scaled.platform.history(scaled.production)[-1]
    assert (back.build, back.replicas, back.capacity) == (second.build, 7, 7)
    assert scaled.platform.field_conflicts(scaled.production) == []


def test_an_autoscaler_beside_the_release_is_kept_or_refused_by_name(
    scaled: Scaled, namespace: Namespace
) -> None:
    scaled.apply("one", 2, 2)
    name = f"{MODEL}-production"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    metric = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    spec = {
        "scaleTargetRef": target,
        "minReplicas": 3,
        "maxReplicas": 8,
        "metrics": [{"type": "Resource", "resource": metric}],
    }
    scaler = {"metadata": {"name": "ours"}, "spec": spec}
    namespace.create(SCALERS[0], scaler, SCALERS[1])
    scaled.scale(3, ready=3)

    with pytest.raises(ForeignChangeError, match=f"HorizontalPodAutoscaler ours scales .*{name}"):
        scaled.apply("two", 1, 2)
    assert scaled.pods == {name: 3}
    with scaled.never_below(3):
        whole = scaled.apply("two", 2, 2, external=True)
    assert (whole.replicas, whole.capacity, scaled.pods) == (3, 3, {name: 3})
    (kept,) = namespace.list(*SCALERS)
    assert kept["spec"]["minReplicas"] == 3


def test_a_number_that_the_suite_itself_has_set_is_nobody_elses(
    scaled: Scaled, namespace: Namespace
) -> None:
    name = f"{MODEL}-production"
    scaled.apply("one", 2, 2)
    scaled.apply("two", 2, 2, enabled=True, minReplicas=1, maxReplicas=4)
    where = f"/{SCALERS[1]}/namespaces/{namespace.name}/{SCALERS[0]}/{name}"
    namespace.cluster.send("DELETE", where).raise_for_status()
    assert scaled.platform.field_conflicts(scaled.production) == []
    with scaled.never_below(2):
        scaled.apply("three", 1, 3)
        scaled.apply("three", 3, 3)
    assert scaled.pods == {name: 3}
