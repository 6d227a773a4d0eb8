"""From one revision's composition to the next, and back from the release's values."""

import json

import pytest

from vllm_rollout.model.deployment import Build, Target
from vllm_rollout.platform.kubernetes.composition import (
    Rollout,
    is_ours,
    next_rollout,
    pods_of,
    read_pods,
    read_rollout,
    release_values,
)

OLD, NEW, NEWER = (
    Build(chart_digest=f"sha256:{digit * 64}", model_revision=name)
    for digit, name in (("1", "old"), ("2", "new"), ("3", "newer"))
)


def target(build: Build, replicas: int, capacity: int = 4) -> Target:
    # A null says "remove the chart's default", and must come back as one.
    values = {"model": {"revision": build.model_revision}, "priorityClassName": None, "big": 10**17}
    return Target(build=build, values=values, replicas=replicas, capacity=capacity)


def running(build: Build, replicas: int, *, previous: Build | None = None) -> Rollout:
    return Rollout(
        build=build,
        digest=build.digest,
        values_json="{}",
        replicas=replicas,
        capacity=4,
        previous=previous,
    )


@pytest.mark.parametrize(
    ("before", "wanted", "stable", "canary"),
    [
        pytest.param(None, target(NEW, 1), 1, 0, id="first install, one pod"),
        pytest.param(running(NEW, 1), target(NEW, 2), 2, 0, id="first install goes on"),
        pytest.param(running(NEW, 2), target(NEW, 4), 4, 0, id="first install ends"),
        pytest.param(running(OLD, 4), target(NEW, 1), 3, 1, id="ramp begins"),
        pytest.param(running(NEW, 1, previous=OLD), target(NEW, 2), 2, 2, id="ramp goes on"),
        pytest.param(running(NEW, 2, previous=OLD), target(NEW, 4), 4, 0, id="ramp ends"),
        pytest.param(running(OLD, 4), target(NEW, 4), 4, 0, id="all at once"),
        pytest.param(running(OLD, 4), target(OLD, 1), 4, 0, id="the same build never shrinks"),
        pytest.param(running(NEW, 2, previous=OLD), target(OLD, 1), 4, 0, id="ramp given up"),
        pytest.param(running(NEW, 1, previous=OLD), target(NEWER, 1), 3, 1, id="another build"),
        pytest.param(running(OLD, 1), target(NEW, 1), 3, 1, id="from a half-done first install"),
    ],
)
def test_the_pods_of_each_track(
    before: Rollout | None, wanted: Target, stable: int, canary: int
) -> None:
    rollout = next_rollout(wanted, before)
    values = release_values(rollout, pods_of(rollout), {"spec": {}})

    assert (values["replicaCount"], values["canary"]["replicaCount"]) == (stable, canary)
    assert bool(values["canary"]["stablePodTemplate"]) == (canary > 0)
    assert rollout.previous == (OLD if canary else None)
    assert rollout.build == wanted.build


def test_a_composition_is_read_back_from_helms_json() -> None:
    rollout = next_rollout(target(NEW, 1), running(OLD, 4))
    values = json.loads(json.dumps(release_values(rollout, pods_of(rollout), {"spec": {}})))

    assert read_rollout(values, chart="vllm-deployment-0.1.0") == rollout
    assert read_pods(values, rollout) == pods_of(rollout)
    assert rollout.values == target(NEW, 1).values
    assert values["rollout"]["digest"] == NEW.digest


@pytest.mark.parametrize("rollout", [None, {}, {"build": "nonsense"}])
def test_a_revision_by_other_hands_has_a_build_that_equals_no_other(rollout: object) -> None:
    values = {"replicaCount": 2, "image": {"tag": "v1"}}
    if rollout is not None:
        values["rollout"] = rollout

    found = read_rollout(values, chart="vllm-deployment-0.1.0")

    assert not is_ours(found)
    assert (found.replicas, found.capacity) == (2, 2)
    assert found.build != read_rollout(values, chart="vllm-deployment-0.2.0").build
    assert found.build != read_rollout({**values, "x": 1}, chart="vllm-deployment-0.1.0").build
