"""The simulated world of the engine's tests."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.crashing import Wrapped
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform
from support.world import PRODUCTION, STAGING, ScriptedGates, World, healthy

from vllm_rollout.deployment import Canary, Deployment
from vllm_rollout.release.context import Context
from vllm_rollout.release.triggers import Sight


@pytest.fixture
def new_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], World]:
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

    def look(self: Context, _client: object, deployment: Deployment) -> Sight:
        inner: Any = self.platform
        while isinstance(inner, Wrapped):
            inner = inner._inner
        world = worlds[id(inner)]
        of_canary = isinstance(deployment, Canary) and world.canary_probes
        probes = (of_canary or world.probes)(world.clock.seconds)
        return Sight(probes=probes, replicas=world.platform.replicas(deployment))

    monkeypatch.setattr(Context, "_look", look)
    # Nothing is asked over HTTP, and a real client takes a tenth of a second to make.
    monkeypatch.setattr(Context, "_client", lambda self, deployment: nullcontext())
    monkeypatch.setattr(Context, "_own_client", lambda self, deployment: nullcontext())
    monkeypatch.setattr(Context, "reach", lambda self, deployment: None)
    return new_world


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    """One such world."""
    return new_world()
