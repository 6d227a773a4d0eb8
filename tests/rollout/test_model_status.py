"""Where a model stands: what blocks its promotion is said before anyone tries."""

from dataclasses import replace
from datetime import timedelta

import pytest
from support.world import BY_TRAFFIC, MODEL, PRODUCTION, STAGING, Killed, World

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.platform.base import Entry
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.model_status import (
    EnvironmentStatus,
    ModelStatus,
    model_status,
    models_known,
)


def status_of(world: World) -> ModelStatus:
    policy = world.tools().run.policy
    return model_status(world.platform, policy, MODEL, world.clock.now())


def staging(world: World) -> EnvironmentStatus:
    return status_of(world).environments[1]


def test_every_environment_is_there_in_order_with_what_it_runs(world: World) -> None:
    development, middle, production = status_of(world).environments
    assert (development.revision, development.blocks) == (None, ("nothing is deployed here",))
    assert middle.environment == "staging"
    assert (middle.revision, middle.on_build, middle.capacity) == (1, 1, 1)
    assert middle.url == f"http://{STAGING.release}"
    assert middle.evidence is None
    assert production.blocks == ()


def test_nothing_blocks_a_build_that_has_soaked_inside_a_window(world: World) -> None:
    found = staging(world)
    assert found.blocks == ()
    assert found.soaked_seconds == timedelta(hours=30).total_seconds()
    assert found.soak_left_seconds == 0


def test_the_soak_and_the_windows_block_and_say_until_when(world: World) -> None:
    history = world.platform.releases[STAGING.release]
    history[-1] = replace(history[-1], created=world.clock.now() - timedelta(hours=1))
    world.clock.sleep(timedelta(hours=12))
    found = staging(world)
    assert found.soak_left_seconds == timedelta(hours=11).total_seconds()
    soak, window = found.blocks
    assert "seen healthy for 13h of 24h" in soak
    assert "11h are left" in soak
    assert "outside the deployment windows" in window
    assert "the next opens" in window


def test_a_promoted_build_has_its_evidence_and_nowhere_to_go(world: World) -> None:
    evidence = gate_and_promote(world.tools())
    found = status_of(world)
    assert found.under_way is None
    assert found.environments[1].blocks == ("production runs this build already",)
    assert found.environments[1].evidence
    assert found.environments[2].evidence
    assert evidence.exit_code == 0
    assert models_known(world.platform) == [MODEL]


def test_after_a_rollback_production_says_why_and_what_is_next(world: World) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    evidence = gate_and_promote(world.tools())
    production = status_of(world).environments[2]
    assert evidence.conclusion in production.rolled_back
    assert production.rolled_back.startswith(f"revision {production.revision} (build ")
    assert "--again --reason TEXT" in production.rolled_back
    assert staging(world).rolled_back == ""


def test_a_status_reads_each_decision_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_and_promote(world.tools())
    world.platform.deploy(STAGING, {"version": 3})
    read, store = list[str](), world.platform.store
    known = store.read

    def noted(key: str) -> Entry | None:
        read.append(key)
        return known(key)

    monkeypatch.setattr(store, "read", noted)
    status_of(world)
    assert read.count(f"decisions/{MODEL}/00000001") == 1


def test_evidence_is_of_the_build_that_serves(world: World) -> None:
    gate_and_promote(world.tools())
    history = world.platform.releases[PRODUCTION.release]
    undone = {1: RevisionStatus.DEPLOYED}  # by kubectl rollout undo
    history[:] = [
        replace(r, status=undone.get(r.number, RevisionStatus.SUPERSEDED)) for r in history
    ]
    found = status_of(world).environments[2]
    assert (found.revision, found.evidence) == (1, None)


def test_what_a_killed_run_left_is_told(world: World) -> None:
    world.platform.kill_at = "apply production 2/4"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    found = status_of(world)
    assert found.under_way is not None
    assert "under way or was left in its phase ramp" in found.environments[1].blocks[0]
    assert found.environments[2].on_build == 1


def test_a_revision_that_is_half_there_does_not_go_on(world: World) -> None:
    history = world.platform.releases[STAGING.release]
    history[-1] = replace(history[-1], status=RevisionStatus.FAILED, capacity=3)
    blocks = staging(world).blocks
    assert "revision 1 is failed, 1 of 3" in blocks
    assert "1 of 3 replicas ready: vllm-rollout diagnose llama-2-7b -e staging shows why" in blocks


def test_an_unknown_model_is_deployed_nowhere(world: World) -> None:
    policy = world.tools().run.policy
    found = model_status(world.platform, policy, "other", world.clock.now())
    assert [each.revision for each in found.environments] == [None] * 3


def test_a_canary_is_told_with_its_share_of_the_traffic(world: World) -> None:
    world.overrides.update(BY_TRAFFIC)
    assert status_of(world).environments[2].canary is None
    world.platform.kill_at = "weights production 0:10000"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())

    canary = status_of(world).environments[2].canary

    assert canary is not None
    assert (canary.share, canary.problem) == (0.25, "")
    assert canary.build == world.platform.build(STAGING, {"version": 2})
    assert [replica.ready for replica in canary.replicas] == [True] * 4


def test_a_canary_is_told_whatever_the_policy_has_become_and_its_route(world: World) -> None:
    world.overrides.update(BY_TRAFFIC)
    world.platform.kill_at = "weights production 0:10000"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    world.overrides.clear()
    world.platform.has_route = False

    canary = status_of(world).environments[2].canary

    assert canary is not None
    assert "nothing divides the traffic" in canary.problem
    assert len(canary.replicas) == 4
