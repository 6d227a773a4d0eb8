"""What a gate run says of the deployment that it was about: what it ran, and what changed."""

from typing import Any

import pytest
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform
from support.world import STAGING

from vllm_rollout.gate_runs import change, identity

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


@pytest.fixture
def platform() -> SimulatedPlatform:
    clock = FakeClock()
    platform = SimulatedPlatform(MemoryStore(clock), clock)
    platform.deploy(STAGING, {"version": 1})
    return platform


def test_an_image_that_is_another_after_a_gate_is_a_change(platform: SimulatedPlatform) -> None:
    seen = []
    for image in (OLD, OLD, NEW):
        platform.images["staging"] = image
        seen.append(identity(platform, STAGING))  # type: ignore[arg-type]

    assert change(seen[:2]) == ""
    assert change(seen) == f"while the gates ran, images: {OLD} -> {NEW}"


def test_pods_that_are_not_ready_for_a_moment_are_no_change(platform: SimulatedPlatform) -> None:
    platform.images["staging"] = OLD
    ready = identity(platform, STAGING)  # type: ignore[arg-type]
    platform.images["staging"] = ""
    unknown = identity(platform, STAGING)  # type: ignore[arg-type]

    assert unknown["images"] == []
    assert change([ready, unknown, ready]) == ""


def test_another_revision_is_a_change_whatever_it_runs(platform: SimulatedPlatform) -> None:
    before: dict[str, Any] = identity(platform, STAGING)  # type: ignore[arg-type]
    platform.deploy(STAGING, {"version": 2})
    after = identity(platform, STAGING)  # type: ignore[arg-type]

    assert change([before, after]).startswith("while the gates ran, revision 1 became revision 2")
