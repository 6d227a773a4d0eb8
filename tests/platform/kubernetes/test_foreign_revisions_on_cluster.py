"""Somebody's `helm rollback` while a step still waits for its pods, which Helm lets pass."""

import subprocess
import threading
from datetime import timedelta
from typing import Any

import pytest
from cluster.behaviour import HEALTHY, Behaviour, unready
from cluster.fixtures import Namespace, eventually

from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.platform.base import ForeignChangeError

MODEL = "llama-2-7b"


@pytest.mark.parametrize("replicas", [2, 1], ids=["all at once", "with a canary"])
def test_a_revision_made_during_a_step_stays(
    namespace: Namespace, helm_binary: str, replicas: int
) -> None:
    platform = namespace.platform(helm_binary, surge=2)
    production = Deployment(MODEL, "production", namespace.name)

    def apply(version: str, replicas: int, seconds: float = 60) -> str:
        values: dict[str, Any] = {"model": {"name": MODEL, "revision": version}}
        build = platform.build(production, values)
        target = Target(build=build, values=values, replicas=replicas, capacity=2)
        limit = timedelta(seconds=seconds)
        platform.apply(production, target, description=f"ours: {version}", timeout=limit)
        return build.digest

    def behave(pod: dict[str, Any]) -> Behaviour:
        return (
            HEALTHY if pod["metadata"]["annotations"]["vllm-rollout/build"] in good else unready()
        )

    good = [apply("one", 2), apply("two", 2)]
    namespace.behave(behave)

    def going_back() -> None:
        # Helm's own revision is there from the moment at which it changes objects.
        eventually(lambda: len(namespace.list("secrets")) == 3)
        back = ("rollback", production.release, "1", "-n", namespace.name)
        subprocess.run([helm_binary, *back], check=True, capture_output=True)

    somebody = threading.Thread(target=going_back)
    somebody.start()
    with pytest.raises(ForeignChangeError, match=r"it has revision 4, 'Rollback to 1'"):
        apply("three", replicas, seconds=15)
    somebody.join()
    newest = platform.history(production)[-1]
    assert (newest.number, newest.build.digest) == (4, good[0])
    assert {r.build for r in platform.replicas(production) if r.ready} == {good[0]}
