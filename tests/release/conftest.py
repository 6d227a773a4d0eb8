"""The simulated world of the engine's tests."""

from pathlib import Path

import pytest
from support.world import (
    PRODUCTION,
    STAGING,
    FakeClock,
    MemoryStore,
    ScriptedGates,
    SimulatedPlatform,
    World,
    healthy,
)

from vllm_rollout.release.context import Context
from vllm_rollout.release.watch import Sight


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Staging runs a second build, production the first; every gate passes, every probe is well."""
    monkeypatch.chdir(tmp_path)
    clock = FakeClock()
    platform = SimulatedPlatform(MemoryStore(clock), clock)
    platform.deploy(PRODUCTION, {"version": 1}, replicas=4)
    build = platform.deploy(STAGING, {"version": 2})
    world = World(tmp_path, clock, platform, ScriptedGates(platform), healthy)
    world.pass_development(build)
    monkeypatch.setattr(
        Context,
        "_look",
        lambda self, _client, deployment: Sight(
            probes=world.probes(clock.seconds), replicas=platform.replicas(deployment)
        ),
    )
    monkeypatch.setattr(Context, "reach", lambda self, deployment: None)
    return world
