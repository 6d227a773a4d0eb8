"""Changes by somebody else while a run is under way: it stops, and leaves production to them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.crashing import Killed
from support.simulated import ALL_STABLE
from support.world import BY_TRAFFIC, PRODUCTION, RAMP, World, builds, changes, healthy, kinds, left

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.model.errors import DeployError, ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.base import LiveObject, Weights
from vllm_rollout.rollout.engine import gate_and_promote

SCALED = ".spec.replicas of Deployment llama-2-7b-production is set by kubectl"
Deed = Callable[[World], object]


def rolls_back(world: World) -> None:
    world.platform.changed_by_hand(PRODUCTION, {"version": 1}, "Rollback to 1")


def hotfix(world: World) -> None:
    world.platform.changed_by_hand(PRODUCTION, {"hotfix": 1}, "hotfix by ann")


def scales(world: World) -> None:
    world.platform.conflicts = [SCALED]


def in_a_hold(world: World, deed: Deed, *, after: int = 1, then_failing: bool = False) -> None:
    """Let somebody do `deed` at the first observation after so many changes of production."""
    done: list[str] = []

    def probes(seconds: float) -> ProbeSample:
        if len(changes(world)) == after and not done:
            done.append("deed")
            deed(world)
        if done and then_failing:
            return ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=True)
        return healthy(seconds)

    world.probes = probes


@pytest.mark.parametrize("then_failing", [False, True])
@pytest.mark.parametrize("after", [1, len(RAMP)])
@pytest.mark.parametrize(
    ("deed", "named"), [(rolls_back, "Rollback to 1"), (hotfix, "hotfix by ann")]
)
def test_a_revision_of_somebody_else_stops_the_run_and_stays(
    world: World, deed: Deed, named: str, after: int, *, then_failing: bool
) -> None:
    in_a_hold(world, deed, after=after, then_failing=then_failing)
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert f"revision {after + 2}, {named!r}" in evidence.conclusion
    assert changes(world) == RAMP[:after]
    theirs = world.platform.history(PRODUCTION)[-1]
    assert (theirs.number, theirs.description) == (after + 2, named)
    assert kinds(world)[-1] == "left"

    # It is nobody's any more: the next run starts again and undoes nothing.
    changes(world).clear()
    world.probes = healthy
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert changes(world) == RAMP


@pytest.mark.parametrize("after", [1, len(RAMP)])
def test_fields_set_by_somebody_else_in_a_hold_stop_the_run(world: World, after: int) -> None:
    in_a_hold(world, scales, after=after)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert SCALED in evidence.conclusion
    assert changes(world) == RAMP[:after]


def test_fields_set_before_are_for_the_platform_to_refuse(world: World) -> None:
    scales(world)
    world.platform.refuses = True
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert SCALED in evidence.conclusion
    assert changes(world) == []
    world.platform.refuses = False
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (DeployError("a webhook is away"), ExitCode.GATE_FAILED),
        (UnreachableError("the API server is busy", address="here"), ExitCode.UNREACHABLE),
    ],
)
def test_what_is_refused_before_anything_is_changed_is_not_rolled_back(
    world: World, refusal: RolloutError, code: ExitCode
) -> None:
    world.platform.refusal = refusal
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == code
    assert evidence.conclusion.startswith(f"Nothing was changed: {refusal}")
    assert changes(world) == []
    assert kinds(world)[-1] == "refusal"
    world.platform.refusal = None
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert changes(world) == RAMP


def test_a_change_of_somebody_else_that_is_under_way_goes_on(world: World) -> None:
    history = world.platform.releases[PRODUCTION.release]
    history.append(replace(history[-1], number=2, status=RevisionStatus.PENDING))
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "Somebody else is changing production/llama-2-7b: its revision 2" in evidence.conclusion
    assert "vllm-rollout rollback llama-2-7b -e production" in evidence.conclusion
    assert changes(world) == []


def test_fields_may_be_overwritten_by_policy(world: World) -> None:
    world.overrides["kubernetes.field_conflicts"] = "overwrite"
    in_a_hold(world, scales)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.OK
    assert SCALED in [step.detail for step in evidence.steps]


def test_a_rollback_takes_fields_back_and_names_them(world: World) -> None:
    in_a_hold(world, scales, then_failing=True)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert SCALED in [step.detail for step in evidence.steps]
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


@pytest.mark.parametrize("then_failing", [False, True])
def test_a_canary_is_removed_beside_a_revision_of_somebody_else(
    world: World, *, then_failing: bool
) -> None:
    world.overrides.update(BY_TRAFFIC)
    in_a_hold(world, hotfix, after=2)
    if then_failing:
        world.gates.outcomes["production"] = Outcome.FAIL
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "hotfix by ann" in evidence.conclusion
    assert world.platform.history(PRODUCTION)[-1].description == "hotfix by ann"
    assert world.platform.weights(PRODUCTION) == ALL_STABLE
    assert world.platform.history(PRODUCTION.canary) == []
    assert not left(world).unfinished


STABLE, BESIDE = "Deployment llama-2-7b-production", "Deployment llama-2-7b-production-canary"
PAUSED = f"spec.paused of {STABLE} is true, set by kubectl-rollout"


def runs_as_left(world: World) -> None:
    world.platform.objects = {
        STABLE: LiveObject(fields={"spec.replicas": 3}, set_by={"": "helm"}),
        BESIDE: LiveObject(fields={"spec.replicas": 1}, set_by={"": "helm"}),
    }


def scales_the_canary(world: World) -> None:
    world.platform.objects[BESIDE] = LiveObject(fields={"spec.replicas": 0}, set_by={"": "kubectl"})


def deletes_the_canary(world: World) -> None:
    del world.platform.objects[BESIDE]


def pauses(world: World) -> None:
    fields = {"spec.replicas": 3, "spec.paused": True}
    world.platform.objects[STABLE] = LiveObject(fields=fields, set_by={"": "kubectl-rollout"})


OF_OBJECTS = [
    (scales_the_canary, f"spec.replicas of {BESIDE} is 0, set by kubectl, and was 1"),
    (deletes_the_canary, f"{BESIDE} is gone"),
    (pauses, f"{PAUSED}, and was not set"),
]


@pytest.mark.parametrize(("deed", "named"), OF_OBJECTS)
def test_edits_of_live_objects_in_a_hold_stop_the_run(world: World, deed: Deed, named: str) -> None:
    runs_as_left(world)
    in_a_hold(world, deed)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert named in evidence.conclusion
    assert changes(world) == RAMP[:1]


@pytest.mark.parametrize("deed", [scales_the_canary, deletes_the_canary])
def test_a_canary_that_somebody_takes_away_loses_its_traffic(world: World, deed: Deed) -> None:
    world.overrides.update(BY_TRAFFIC)
    runs_as_left(world)
    in_a_hold(world, deed, after=2)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert world.platform.weights(PRODUCTION) == ALL_STABLE
    assert world.platform.history(PRODUCTION.canary) == []


def test_weights_that_somebody_moves_in_a_hold_stay_with_the_canary(world: World) -> None:
    world.overrides.update(BY_TRAFFIC)
    theirs = Weights(stable=1, canary=1, set_by="kubectl-edit")

    def moves(world: World) -> None:
        world.platform.divided[PRODUCTION.release] = theirs

    in_a_hold(world, moves, after=2)
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "weights are 1:1, set by kubectl-edit, and were 7500:2500" in evidence.conclusion
    assert world.platform.weights(PRODUCTION) == theirs
    assert world.platform.history(PRODUCTION.canary)
    assert not left(world).unfinished


def test_what_somebody_has_paused_is_refused_before_the_gates(world: World) -> None:
    runs_as_left(world)
    pauses(world)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert PAUSED in evidence.conclusion
    assert evidence.runs == ()
    assert changes(world) == []


def edits(world: World) -> None:
    world.platform.differences["production"] = ["spec.args was rendered, another runs"]


def moves_weights(world: World) -> None:
    world.platform.divided[PRODUCTION.release] = Weights(stable=1, canary=9)


@pytest.mark.parametrize(
    ("deed", "named"),
    [
        (rolls_back, "'Rollback to 1'"),
        (hotfix, "hotfix by ann"),
        (scales, SCALED),
        (edits, "spec.args"),
        (moves_weights, "weights are 1:9"),
    ],
)
def test_what_somebody_does_before_a_killed_run_is_resumed_stays(
    world: World, deed: Deed, named: str
) -> None:
    by_traffic = deed is moves_weights
    if by_traffic:
        world.overrides.update(BY_TRAFFIC)

    def killed(_seconds: float) -> ProbeSample:
        raise Killed

    world.probes = killed
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    assert left(world).unfinished
    before = list(changes(world))
    world.probes = healthy
    world.clock.seconds += 600  # the lease of the killed run is over
    deed(world)

    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert named in evidence.conclusion
    assert changes(world) == before
    assert not left(world).unfinished
