"""A ramp by traffic weight: side by side, never more than a side can carry, and back as it was."""

from dataclasses import replace

import pytest
from support.world import ALL_STABLE, BY_TRAFFIC, MODEL, PRODUCTION, STAGING, World, healthy

from vllm_rollout.deployment import Canary
from vllm_rollout.errors import ExitCode
from vllm_rollout.judge import Outcome
from vllm_rollout.observe.probe import ProbeSample
from vllm_rollout.platform.base import Weights
from vllm_rollout.release.engine import gate_and_promote, roll_back_by_hand

CANARY = PRODUCTION.canary
CLIMB = [
    "apply production canary 1/1",
    "weights production 7500:2500",
    "apply production canary 4/4",
    "weights production 0:10000",
]
UP = [*CLIMB, "apply production 4/4", "weights production 1:0", "uninstall production canary"]


@pytest.fixture
def world(world: World) -> World:
    world.overrides.update(BY_TRAFFIC)
    return world


def old(world: World) -> str:
    return world.platform.build(PRODUCTION, {"version": 1}).digest


def new(world: World) -> str:
    return world.platform.build(STAGING, {"version": 2}).digest


def answers(*, failures: int = 0, seconds: float = 0.1, total: int = 10) -> ProbeSample:
    latencies = (seconds,) * (total - failures)
    return ProbeSample(
        total=total, failures=failures, latencies_seconds=latencies, healthy=failures < total
    )


def silent(_seconds: float) -> ProbeSample:
    """Healthy, and no probe was answered or failed."""
    return ProbeSample(total=0, failures=0, latencies_seconds=(), healthy=True)


def as_before(world: World) -> bool:
    """Whether users have what they had, and nothing else is left."""
    return (
        world.platform.serving(PRODUCTION) == (old(world), 4, 4)
        and world.platform.weights(PRODUCTION) == ALL_STABLE
        and world.platform.history(CANARY) == []
    )


def test_traffic_moves_to_a_canary_and_back_to_the_release_once_that_runs_the_build(
    world: World,
) -> None:
    evidence = gate_and_promote(world.context())

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
    evidence = gate_and_promote(world.context(), plan_only=True)

    assert world.platform.calls == []
    story = "\n".join(step.title for step in evidence.steps)
    assert "bring up 1 replicas of the canary of production/llama-2-7b" in story
    assert "give it 25% of the traffic, then watch both for 3m" in story
    assert f"remove {CANARY}" in story


def test_where_nothing_serves_yet_there_is_no_traffic_to_move(world: World) -> None:
    del world.platform.releases[PRODUCTION.release]
    world.platform.has_route = False

    assert gate_and_promote(world.context()).exit_code == ExitCode.OK
    assert world.platform.calls == ["apply production 1/4", "apply production 4/4"]


@pytest.mark.parametrize("trouble", ["no route", "a share", "a release", "half a ramp"])
def test_what_a_ramp_cannot_set_out_from_is_refused_before_anything_is_done(
    world: World, trouble: str
) -> None:
    said = {
        "no route": "nothing divides the traffic",
        "a share": "20% of the traffic of production/llama-2-7b goes to a canary",
        "a release": f"there is a release {MODEL}-production-canary already",
        "half a ramp": "is half way in a ramp by replicas: 2 of 4",
    }
    if trouble == "no route":
        world.platform.has_route = False
    elif trouble == "a share":
        world.platform.divided[PRODUCTION.release] = Weights(stable=4, canary=1)
    elif trouble == "a release":
        world.platform.deploy(CANARY, {"version": 9})
    else:
        build = world.platform.build(PRODUCTION, {"version": 1})
        world.platform._add(PRODUCTION, build, 2, 4, "by hand")

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.USAGE
    assert said[trouble] in evidence.conclusion
    assert evidence.runs == ()
    assert world.platform.calls == []


def test_a_canary_that_fails_loses_its_traffic_first_and_then_its_replicas(world: World) -> None:
    world.canary_probes = lambda _seconds: answers(failures=3)

    evidence = gate_and_promote(world.context())

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

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "canary against baseline (fail): P95 is 0.2 s for the canary" in evidence.conclusion
    assert as_before(world)


def test_what_cannot_be_told_apart_is_held_for_longer_once_and_then_not_passed(
    world: World,
) -> None:
    world.overrides["watch.probes"] = 1  # too few to know
    world.probes = lambda _seconds: answers(total=1)

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "canary against baseline (inconclusive)" in evidence.conclusion
    assert any(step.title == "the step is held for 3m longer" for step in evidence.steps)
    assert world.clock.seconds >= 2 * 180
    assert as_before(world)


def test_a_step_that_is_inconclusive_at_first_goes_on_when_it_is_known(world: World) -> None:
    world.overrides.update({"watch.probes": 5, "canary.extend": "1h"})
    world.probes = lambda _seconds: answers(total=5)

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert any(step.title == "the step is held for 1h longer" for step in evidence.steps)


def test_a_canary_that_no_probe_reaches_is_not_passed(world: World) -> None:
    world.canary_probes = silent

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "went blind" in evidence.conclusion
    assert world.platform.weights(PRODUCTION) == Weights(stable=7500, canary=2500)
    world.canary_probes = None
    world.platform.calls.clear()
    assert gate_and_promote(world.context()).exit_code == ExitCode.OK
    assert world.platform.calls == ["weights production 1:0", "uninstall production canary", *UP]


def test_weights_that_other_hands_changed_end_the_ramp(world: World) -> None:
    def others(_seconds: float) -> ProbeSample:
        world.platform.divided[PRODUCTION.release] = Weights(stable=1, canary=1)
        return answers()

    world.canary_probes = others

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "the weights are 1:1, not 7500:2500" in evidence.conclusion
    assert as_before(world)


@pytest.mark.parametrize("by_hand", [False, True])
def test_production_gates_that_fail_bring_the_old_build_back_after_the_canary_is_gone(
    world: World, by_hand: bool
) -> None:
    if by_hand:
        gate_and_promote(world.context())
        context = replace(world.context(), source=PRODUCTION)
        assert roll_back_by_hand(context, to=None, reason="slow").exit_code == ExitCode.OK
    else:
        world.gates.outcomes["production"] = Outcome.FAIL
        assert gate_and_promote(world.context()).exit_code == ExitCode.ROLLED_BACK
    assert world.platform.calls == [*UP, "rollback production 1"]
    assert as_before(world)


def test_a_rollback_by_hand_of_a_ramp_that_stopped_half_way_takes_the_traffic_back(
    world: World,
) -> None:
    world.canary_probes = silent
    gate_and_promote(world.context())

    context = replace(world.context(), source=PRODUCTION)
    evidence = roll_back_by_hand(context, to=None, reason="enough")

    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert as_before(world)


# What has gone wrong in the field.


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

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.NEEDS_PERSON
    assert "25% of the traffic stays with a canary" in evidence.conclusion
    assert world.platform.calls == CLIMB[:2]
    assert world.platform.ready(CANARY) == 1


def test_flagger_1898_a_release_that_does_not_come_up_on_the_build_is_brought_back_first(
    world: World,
) -> None:
    world.platform.failing.add("apply production 4/4")

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.calls == [*UP[:5], "weights production 1:0", UP[-1]]
    assert as_before(world)


@pytest.mark.parametrize("serves", [True, False])
def test_argo_2235_replicas_are_removed_only_when_others_have_their_traffic_and_serve(
    world: World, serves: bool
) -> None:
    """Replicas were scaled down before the traffic had gone elsewhere: four minutes of outage."""
    world.gates.outcomes["verify"] = Outcome.PASS if serves else Outcome.FAIL

    gate_and_promote(world.context())

    calls = world.platform.calls
    assert calls[: len(UP) - 1] == UP[:-1]
    assert ("uninstall production canary" in calls) is serves


def test_argo_4390_a_side_without_ready_replicas_gets_no_traffic(world: World) -> None:
    """Traffic went to replicas that were not there yet: 503, no endpoints."""
    world.platform.unready[CANARY.release] = 1

    evidence = gate_and_promote(world.context())

    assert evidence.exit_code == ExitCode.GATE_FAILED
    assert "the canary of production/llama-2-7b has 0 of 1 replicas ready" in evidence.conclusion
    assert world.platform.calls == ["apply production canary 1/1", "uninstall production canary"]
    assert as_before(world)


def test_argo_4390_traffic_that_moved_while_replicas_were_lost_goes_back(world: World) -> None:
    def lost(call: str) -> None:
        if call == CLIMB[1]:
            world.platform.unready[CANARY.release] = 1

    world.platform.in_change = lost

    evidence = gate_and_promote(world.context())

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

    evidence = gate_and_promote(world.context())

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
    interrupted = gate_and_promote(world.context())
    assert interrupted.exit_code == ExitCode.INTERRUPTED
    assert "of the traffic goes to its canary" in interrupted.conclusion
    world.gates.outcomes["production"] = Outcome.FAIL
    gate_and_promote(world.context())

    assert world.platform.serving(PRODUCTION) == (old(world), 4, 4)
    assert world.platform.weights(PRODUCTION) == weights
    assert world.platform.history(CANARY) == []


def test_a_canary_is_another_deployment_than_its_release() -> None:
    assert Canary(MODEL, "production") != PRODUCTION
    assert CANARY.release == f"{MODEL}-production-canary"
