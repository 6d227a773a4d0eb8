"""The wait for pods, whatever Helm says, is cut short by, or cannot see."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import pytest

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError
from vllm_rollout.platform.kubernetes import pod_wait
from vllm_rollout.platform.kubernetes.pod_wait import PodWait
from vllm_rollout.platform.kubernetes.readiness import Readiness
from vllm_rollout.platform.kubernetes.templates import Json

PRODUCTION = Deployment("m", "production")
LONG = timedelta(minutes=15)
LOADING = Readiness(ready=2, wanted=3, missing=("Deployment m: 2 of 3 ready",), pods=("m-x: Boom",))
READY = Readiness(ready=3, wanted=3)


def waited(
    *seen: Readiness | Exception,
    limit: timedelta = LONG,
    change: Callable[[timedelta], None] = lambda _: None,
    still_allowed: Callable[[], None] = lambda: None,
) -> int:
    """Wait for pods that are seen so, one look after the other; return how many were left."""
    looks: Iterator[Readiness | Exception] = iter(seen)

    def readiness(_deployment: Deployment, _objects: Sequence[Json]) -> Readiness:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    wait = PodWait(readiness=readiness, still_allowed=still_allowed)
    wait.made(PRODUCTION, [], limit=limit, change=change)
    return len(list(looks))


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_wait, "_LOOK_SECONDS", 0.0)


def test_a_change_ends_when_all_are_ready_though_a_look_fails() -> None:
    away = UnreachableError("away", address="here")
    assert waited(LOADING, away, LOADING, READY, LOADING) == 1


def test_pods_that_are_not_ready_in_time_fail_the_change() -> None:
    with pytest.raises(DeployError, match="production/m is not ready within 0s"):
        waited(LOADING, limit=timedelta())


def test_an_interrupted_wait_says_in_what_state_it_leaves_the_release() -> None:
    def interrupted(_limit: timedelta) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"m is left half changed.*: 2 of 3.*m-x: Boom"):
        waited(LOADING, change=interrupted)


def test_a_wait_ends_with_the_lease() -> None:
    def lost() -> None:
        raise RolloutError("the lease is lost")

    with pytest.raises(RolloutError, match="is lost"):
        waited(LOADING, still_allowed=lost)
