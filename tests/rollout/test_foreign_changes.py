"""Changes by somebody else while a run is under way: it stops, and leaves production to them."""

from collections.abc import Callable

import pytest
from support.simulated import ALL_STABLE
from support.world import BY_TRAFFIC, PRODUCTION, RAMP, World, builds, changes, healthy, kinds

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.observation import ProbeSample
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
    entry = world.journal()
    assert entry is not None
    assert not entry.unfinished
