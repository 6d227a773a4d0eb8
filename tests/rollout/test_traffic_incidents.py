"""What has gone wrong in the field with traffic that was moved, by the name of the incident."""

import pytest
from support.simulated import ALL_STABLE
from support.traffic import CANARY, CLIMB, UP, answers, as_before, old
from support.world import BY_TRAFFIC, PRODUCTION, World, healthy

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.base import Weights
from vllm_rollout.rollout.engine import gate_and_promote


@pytest.fixture
def world(world: World) -> World:
    world.overrides.update(BY_TRAFFIC)
    return world


def test_flagger_1898_a_release_that_fails_is_not_given_the_traffic_of_healthy_replicas(
    world: World,
) -> None:
    """A release failed after promotion; rollback gave it all traffic and removed what was well."""
    broken = False

    def probes(_seconds: float) -> ProbeSample:
        return answers(failures=10 if broken else 0)

    def breaks(call: str) -> None:
        nonlocal broken
        broken = broken or call == CLIMB[1]

    world.probes, world.canary_probes = probes, healthy
    world.platform.in_change = breaks

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.NEEDS_PERSON
    assert "25% of the traffic stays with a canary" in evidence.conclusion
    assert world.platform.calls == CLIMB[:2]
    assert world.platform.ready(CANARY) == 1


def test_flagger_1898_a_release_that_does_not_come_up_on_the_build_is_brought_back_first(
    world: World,
) -> None:
    world.platform.failing.add("apply production 4/4")

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.calls == [*UP[:5], "weights production 1:0", UP[-1]]
    assert as_before(world)


@pytest.mark.parametrize("serves", [True, False])
def test_argo_2235_replicas_are_removed_only_when_others_have_their_traffic_and_serve(
    world: World, serves: bool
) -> None:
    """Replicas were scaled down before the traffic had gone elsewhere: four minutes of outage."""
    world.gates.outcomes["verify"] = Outcome.PASS if serves else Outcome.FAIL

    gate_and_promote(world.tools())

    calls = world.platform.calls
    assert calls[: len(UP) - 1] == UP[:-1]
    assert ("uninstall production canary" in calls) is serves


def test_argo_4390_a_side_without_ready_replicas_gets_no_traffic(world: World) -> None:
    """Traffic went to replicas that were not there yet: 503, no endpoints."""
    world.platform.unready[CANARY.release] = 1

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.GATE_FAILED
    assert "the canary of production/llama-2-7b has 0 of 1 replica ready" in evidence.conclusion
    assert world.platform.calls == ["apply production canary 1/1", "uninstall production canary"]
    assert as_before(world)


def test_argo_4390_traffic_that_moved_while_replicas_were_lost_goes_back(world: World) -> None:
    def lost(call: str) -> None:
        if call == CLIMB[1]:
            world.platform.unready[CANARY.release] = 1

    world.platform.in_change = lost

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "traffic was moved, and now the canary" in evidence.conclusion
    assert as_before(world)


def test_argo_4612_in_a_rollback_no_side_gets_more_than_its_ready_replicas_can_carry(
    world: World,
) -> None:
    """A canary sized for 5% had 70% of the traffic while a rollback was under way."""
    shares: list[tuple[float, float]] = []

    def moved(call: str) -> None:
        if call.startswith("weights"):
            share = world.platform.weights(PRODUCTION).canary_share
            shares.append((share, world.platform.ready(PRODUCTION) / 4))

    def probes(_seconds: float) -> ProbeSample:
        if world.platform.weights(PRODUCTION).canary_share == 1:
            world.platform.unready.setdefault(PRODUCTION.release, 3)  # one is ready
        elif PRODUCTION.release in world.platform.unready:
            world.platform.unready[PRODUCTION.release] = max(
                0, world.platform.unready[PRODUCTION.release] - 1
            )
        return answers()

    world.probes = probes
    world.platform.in_change = moved
    world.platform.failing.add("apply production 4/4")

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert [share for share, _ in shares] == [0.25, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert all(1 - share <= carried for share, carried in shares[2:])
    assert as_before(world)


@pytest.mark.parametrize("weights", [Weights(stable=1), Weights(stable=100, canary=0)])
@pytest.mark.parametrize("at", range(len(UP)))
def test_argo_4841_an_abort_at_any_step_returns_to_the_very_weights_of_before(
    world: World, weights: Weights, at: int
) -> None:
    """An abort did not return the canary's weight to 0."""
    world.platform.divided[PRODUCTION.release] = weights

    def interrupt(call: str) -> None:
        if call == UP[at].replace(str(ALL_STABLE), str(weights)):
            world.platform.in_change = lambda _call: None
            raise KeyboardInterrupt

    world.platform.in_change = interrupt
    interrupted = gate_and_promote(world.tools())
    assert interrupted.exit_code == ExitCode.INTERRUPTED
    assert "of the traffic goes to its canary" in interrupted.conclusion
    world.gates.outcomes["production"] = Outcome.FAIL
    gate_and_promote(world.tools())

    assert world.platform.serving(PRODUCTION) == (old(world), 4, 4)
    assert world.platform.weights(PRODUCTION) == weights
    assert world.platform.history(CANARY) == []
