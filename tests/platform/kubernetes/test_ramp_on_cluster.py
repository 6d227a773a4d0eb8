"""A ramp on a real API server: what is ready never falls below the capacity."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
from cluster.fixtures import Namespace, eventually

from vllm_rollout.model.deployment import Deployment, Target

MODEL = "llama-2-7b"
LONG = timedelta(seconds=60)
CAPACITY = 4


class Readiness:
    """How many pods were ready after each change of a pod, in the API server's own order."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.most = 0
        self._pods: dict[str, bool] = {}

    def take(self, event: dict[str, Any]) -> None:
        pod = event["object"]
        name = pod["metadata"]["name"]
        conditions = pod["status"].get("conditions", [])
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        gone = event["type"] == "DELETED" or "deletionTimestamp" in pod["metadata"]
        if gone:
            self._pods.pop(name, None)
        else:
            self._pods[name] = ready
        self.counts.append(sum(self._pods.values()))
        self.most = max(self.most, len(self._pods))


@contextmanager
def followed(namespace: Namespace) -> Iterator[Readiness]:
    """Follow the namespace's pods from now on, by a watch of the API server."""
    seen = Readiness()
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    client = namespace.cluster.api
    started = threading.Event()

    def follow() -> None:
        with client.stream("GET", path, params={"watch": "1"}, timeout=None) as answer:
            started.set()
            try:
                for line in answer.iter_lines():
                    event = json.loads(line)
                    if event["type"] == "BOOKMARK" or stop.is_set():
                        return
                    seen.take(event)
            except httpx.HTTPError:
                return

    stop = threading.Event()
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert started.wait(60)
    yield seen
    stop.set()


def test_ready_pods_never_fall_below_the_capacity(namespace: Namespace, helm_binary: str) -> None:
    platform = namespace.platform(
        helm_binary, service_url="http://{model}-{environment}.{namespace}:8000"
    )
    production = Deployment(MODEL, "production", namespace.name)

    def apply(version: str, replicas: int) -> None:
        values = {"model": {"name": MODEL, "revision": version}}
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=replicas, capacity=CAPACITY)
        revision = platform.apply(production, target, description=version, timeout=LONG)
        assert (revision.build, revision.replicas) == (build, replicas)

    apply("one", CAPACITY)
    with followed(namespace) as seen:
        eventually(lambda: seen.counts[-1:] == [CAPACITY])
        begun = len(seen.counts)
        for replicas in (1, 2, CAPACITY):
            apply("two", replicas)
            builds = [r.build for r in platform.replicas(production)]
            newest = platform.history(production)[-1].build.digest
            assert builds.count(newest) == replicas
        eventually(lambda: seen.counts[-1] == CAPACITY)

    assert min(seen.counts[begun:]) == CAPACITY
    assert seen.most <= CAPACITY + 1
    assert [d["metadata"]["name"] for d in namespace.list("deployments", "apis/apps/v1")] == [
        f"{MODEL}-production"
    ]
