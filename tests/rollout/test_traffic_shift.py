"""A ramp by traffic weight: side by side, never more than a side can carry, and back as it was."""

import pytest
from support.simulated import ALL_STABLE
from support.traffic import CANARY, CLIMB, UP, answers, as_before, new
from support.world import BY_TRAFFIC, MODEL, PRODUCTION, World

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Canary
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.base import Weights
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback


@pytest.fixture
def world(world: World) -> World:
    world.overrides.update(BY_TRAFFIC)
    return world


def silent(_seconds: float) -> ProbeSample:
    """Healthy, and no probe was answered or failed."""
    return ProbeSample(total=0, failures=0, latencies_seconds=(), healthy=True)


def test_traffic_moves_to_a_canary_and_back_to_the_release_once_that_runs_the_build(
    world: World,
) -> None:
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert world.platform.calls == UP
    assert world.platform.serving(PRODUCTION) == (new(world), 4, 4)
    assert world.platform.weights(PRODUCTION) == ALL_STABLE
    compared = [step for step in evidence.steps if step.title.startswith("canary against")]
    assert [(step.title.partition(", ")[2], step.outcome) for step in compared] == [
        ("P95 latency: pass", Outcome.PASS),
        ("error rate: pass", Outcome.PASS),
    ]


def test_the_plan_says_each_step(world: World) -> None:
    evidence = gate_and_promote(world.tools(), plan_only=True)

    assert world.platform.calls == []
    story = "\n".join(step.title for step in evidence.steps)
    assert "bring up 1 replica of the canary of production/llama-2-7b" in story
    assert "give it 25% of the traffic, then watch both for 3m" in story
    assert f"remove {CANARY}" in story


def test_where_nothing_serves_yet_there_is_no_traffic_to_move(world: World) -> None:
    del world.platform.releases[PRODUCTION.release]
    world.platform.has_route = False

    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert world.platform.calls == ["apply production 1/4", "apply production 4/4"]


@pytest.mark.parametrize(
    "trouble", ["no route", "a share", "a release", "half a ramp", "an autoscaler"]
)
def test_what_a_ramp_cannot_set_out_from_is_refused_before_anything_is_done(
    world: World, trouble: str
) -> None:
    said = {
        "no route": "nothing divides the traffic",
        "a share": "20% of the traffic of production/llama-2-7b goes to a canary",
        "a release": f"there is a release {MODEL}-production-canary already",
        "an autoscaler": "is scaled by HorizontalPodAutoscaler llama-2-7b-production",
        "half a ramp": "is half way in a ramp by replicas: 2 of 4",
    }
    if trouble == "no route":
        world.platform.has_route = False
    elif trouble == "a share":
        world.platform.divided[PRODUCTION.release] = Weights(stable=4, canary=1)
    elif trouble == "an autoscaler":
        world.platform.scalers = ["HorizontalPodAutoscaler llama-2-7b-production"]
    elif trouble == "a release":
        world.platform.deploy(CANARY, {"version": 9})
    else:
        build = world.platform.build(PRODUCTION, {"version": 1})
        world.platform._add(PRODUCTION, build, 2, 4, "by hand")

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.USAGE
    assert said[trouble] in evidence.conclusion
    assert evidence.runs == ()
    assert world.platform.calls == []


def test_a_canary_that_fails_loses_its_traffic_first_and_then_its_replicas(world: World) -> None:
    world.canary_probes = lambda _seconds: answers(failures=3)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "the canary of production/llama-2-7b: error rate" in evidence.conclusion
    assert world.platform.calls == [
        *CLIMB[:2],
        "weights production 1:0",
        "uninstall production canary",
    ]
    assert as_before(world)


def test_a_canary_slower_than_the_baseline_by_more_than_may_be_is_undone(world: World) -> None:
    world.canary_probes = lambda _seconds: answers(seconds=0.2)  # far below every trigger

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "canary against baseline (fail): P95 is 0.2 s for the canary" in evidence.conclusion
    assert as_before(world)


def test_what_cannot_be_told_apart_is_held_for_longer_once_and_then_not_passed(
    world: World,
) -> None:
    world.overrides["watch.probes"] = 1  # too few to know
    world.probes = lambda _seconds: answers(total=1)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "canary against baseline (inconclusive)" in evidence.conclusion
    assert any(step.title == "the step is held for 3m longer" for step in evidence.steps)
    assert world.clock.seconds >= 2 * 180
    assert as_before(world)


def test_a_step_that_is_inconclusive_at_first_goes_on_when_it_is_known(world: World) -> None:
    world.overrides.update({"watch.probes": 5, "canary.extend": "1h"})
    world.probes = lambda _seconds: answers(total=5)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert any(step.title == "the step is held for 1h longer" for step in evidence.steps)


def test_a_canary_that_no_probe_reaches_is_not_passed(world: World) -> None:
    world.canary_probes = silent

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "went blind" in evidence.conclusion
    assert world.platform.weights(PRODUCTION) == Weights(stable=7500, canary=2500)
    world.canary_probes = None
    world.platform.calls.clear()
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert world.platform.calls == ["weights production 1:0", "uninstall production canary", *UP]


@pytest.mark.parametrize("by_hand", [False, True])
def test_production_gates_that_fail_bring_the_old_build_back_after_the_canary_is_gone(
    world: World, by_hand: bool
) -> None:
    if by_hand:
        gate_and_promote(world.tools())
        tools = world.tools(source=PRODUCTION)
        assert manual_rollback(tools, to=None, reason="slow").exit_code == ExitCode.OK
    else:
        world.gates.outcomes["production"] = Outcome.FAIL
        assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
    assert world.platform.calls == [*UP, "rollback production 1"]
    assert as_before(world)


def test_a_rollback_by_hand_of_a_ramp_that_stopped_half_way_takes_the_traffic_back(
    world: World,
) -> None:
    world.canary_probes = silent
    gate_and_promote(world.tools())

    tools = world.tools(source=PRODUCTION)
    evidence = manual_rollback(tools, to=None, reason="enough")

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert as_before(world)


def test_a_canary_is_another_deployment_than_its_release() -> None:
    assert Canary(MODEL, "production") != PRODUCTION
    assert CANARY.release == f"{MODEL}-production-canary"
