"""The simulated world of the engine's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.crashing import Wrapped
from support.scripted_observer import scripted_observer
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform
from support.world import PRODUCTION, STAGING, ScriptedGates, World, healthy

from vllm_rollout.model.deployment import Canary, Deployment
from vllm_rollout.model.observation import Observation
from vllm_rollout.platform.clusters import Clusters
from vllm_rollout.rollout.observer import DeploymentObserver


@pytest.fixture
def new_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], World]]:
    """Worlds in which staging runs a second build, production the first, and all is well."""
    monkeypatch.chdir(tmp_path)
    worlds: dict[int, World] = {}

    def new_world() -> World:
        clock = FakeClock()
        platform = SimulatedPlatform(MemoryStore(clock), clock)
        platform.deploy(PRODUCTION, {"version": 1}, replicas=4)
        build = platform.deploy(STAGING, {"version": 2})
        gates = ScriptedGates(platform, clock)
        world = worlds[id(platform)] = World(tmp_path, clock, platform, gates, healthy)
        world.pass_development(build)
        return world

    def see(looks: DeploymentObserver, deployment: Deployment) -> Observation:
        inner: Any = looks.settings.platform
        while isinstance(inner, Wrapped):
            inner = inner._inner
        where = inner
        if isinstance(inner, Clusters):
            inner = inner._platforms["staging"]
        world = worlds[id(inner)]
        of_canary = isinstance(deployment, Canary) and world.canary_probes
        probes = (of_canary or world.probes)(world.clock.seconds)
        return Observation(probes=probes, replicas=where.replicas(deployment))

    with scripted_observer(see):
        yield new_world


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    """One such world."""
    return new_world()
