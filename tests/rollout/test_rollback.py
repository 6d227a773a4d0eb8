"""What a rollback returns to, what leads to it, and what it leaves when it does not work."""

from dataclasses import replace
from datetime import timedelta

import pytest
from support.crashing import Killed
from support.world import MODEL, PRODUCTION, RAMP, STAGING, World, builds, changes, kinds, left

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.evidence_store import find_evidence
from vllm_rollout.rollout.gates import GatesCrashedError
from vllm_rollout.rollout.journal import Phase


def test_a_build_that_was_rolled_back_is_never_what_a_rollback_returns_to(world: World) -> None:
    world.overrides["ramp"] = [{"share": "100%", "hold": "0s"}]

    def breaks_in_the_watch(_seconds: float) -> ProbeSample:
        entry = world.journal()
        bad = entry is not None and entry.phase is Phase.WATCH
        return ProbeSample(
            total=10, failures=10 if bad else 0, latencies_seconds=(0.1,) * 10, healthy=True
        )

    world.probes = breaks_in_the_watch
    assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
    world.pass_development(world.platform.deploy(STAGING, {"version": 3}))
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


def test_a_rollback_that_does_not_come_up_goes_on_to_the_next_older_good_build(
    world: World,
) -> None:
    gate_and_promote(world.tools())  # the second build, with evidence
    world.pass_development(world.platform.deploy(STAGING, {"version": 3}))
    gate_and_promote(world.tools())  # the third
    third = world.platform.build(STAGING, {"version": 3}).digest
    world.pass_development(world.platform.deploy(STAGING, {"version": 4}))
    world.gates.outcomes["production"] = Outcome.FAIL
    world.platform.never_ready_again.add(third)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)
    assert kinds(world)[-3:] == ["rollback", "rollback", "rolled-back"]


def test_gates_that_cannot_be_run_after_promotion_bring_the_old_build_back(world: World) -> None:
    def disk_full(deployment: object) -> None:
        if deployment == PRODUCTION and not full:
            full.append(deployment)
            raise GatesCrashedError("the gates could not be run: No space left on device")

    full: list[object] = []
    world.gates.during = disk_full

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "No space left on device" in evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


def test_a_rollback_waits_for_a_platform_that_is_away_for_a_while(world: World) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    world.platform.away = 3

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


def test_errors_during_the_ramp_bring_the_old_build_back(world: World) -> None:
    def probes(_seconds: float) -> ProbeSample:
        bad = len(changes(world)) >= 2
        return ProbeSample(
            total=10, failures=2 if bad else 0, latencies_seconds=(0.1,) * 8, healthy=True
        )

    world.probes = probes

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "error rate" in evidence.conclusion
    assert changes(world) == [*RAMP[:2], "rollback production 1"]
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


def test_an_outage_after_promotion_rolls_back(world: World) -> None:
    world.probes = lambda _seconds: ProbeSample(
        total=10,
        failures=10 if len(world.gates.outcomes) or len(changes(world)) == 3 else 0,
        latencies_seconds=(0.1,),
        healthy=True,
    )
    world.overrides["ramp"] = [{"share": "100%", "hold": "0s"}]

    def break_after_gates(deployment: object) -> None:
        if deployment == PRODUCTION:
            world.gates.outcomes["marker"] = Outcome.PASS

    world.gates.during = break_after_gates
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "complete outage" in evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.INCONCLUSIVE])
def test_production_gates_that_do_not_pass_roll_back(world: World, outcome: Outcome) -> None:
    world.gates.outcomes["production"] = outcome

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


@pytest.mark.parametrize("how", ["helm fails", "not seen to serve"])
def test_a_rollback_that_does_not_restore_service_calls_for_a_person(
    world: World, how: str
) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    if how == "helm fails":
        world.platform.fail_rollback = True
    else:
        world.gates.outcomes["verify"] = Outcome.INCONCLUSIVE
    told: list[tuple[str, str]] = []
    tools = world.tools(notify=lambda kind, text, **_: told.append((kind, text)))

    evidence = gate_and_promote(tools)

    assert evidence.exit_code == ExitCode.NEEDS_PERSON
    assert evidence.outcome is Outcome.FAIL
    assert "does not serve" not in evidence.conclusion  # nobody saw that
    assert ("it was not seen to serve" in evidence.conclusion) is (how == "not seen to serve")
    assert "vllm-rollout rollback llama-2-7b -e production --to REVISION" in evidence.conclusion
    assert told[-1] == ("rollback-failed", evidence.conclusion)
    assert kinds(world)[-1] == "rollback-failed"
    assert left(world).unfinished  # the next run takes the rollback up again


def test_a_killed_rollback_says_when_it_is_done_after_all(world: World) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    world.platform.kill_at = "rollback production 1"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    world.clock.sleep(timedelta(minutes=2))
    told: list[tuple[str, str, str]] = []

    def tell(kind: str, text: str, *, build: str = "", **_: str) -> None:
        told.append((kind, text, build))

    evidence = gate_and_promote(world.tools(notify=tell, again="Ada"))

    assert evidence.exit_code == ExitCode.ROLLED_BACK  # of the next attempt, by the same gate
    first = next(each for each in told if each[0] == "rolled-back")
    assert "Rolled back to revision 1" in first[1]
    assert "stopped in the rollback phase" in first[1]
    assert {build for _, _, build in told} == {builds(world)[1]}
    assert kinds(world).count("rolled-back") == 2


def test_messages_are_waited_for_when_the_evidence_is_kept_and_the_lease_given_up(
    world: World,
) -> None:
    world.gates.outcomes["production"] = Outcome.FAIL
    store = world.platform.store
    then: list[tuple[bool, str]] = []

    def undelivered(*, wait: bool) -> list[str]:
        if not wait:
            return ["rollback to pager: HTTP 503"]
        then.append((MODEL in store.leases, kinds(world)[-1]))
        return ["rolled-back to pager: HTTP 503"]

    tools = world.tools(undelivered=undelivered)
    evidence = gate_and_promote(tools)

    assert then == [(False, "rolled-back")]
    assert find_evidence(store, MODEL, evidence.digest) == evidence
    assert "rollback to pager: HTTP 503" in [step.detail for step in evidence.steps]
    assert tools.log.missed == [
        f"{each} to pager: HTTP 503" for each in ("rollback", "rolled-back")
    ]


def test_a_model_that_never_was_in_production_is_removed_again(world: World) -> None:
    del world.platform.releases[PRODUCTION.release]
    world.gates.outcomes["production"] = Outcome.FAIL

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) is None


def test_rollback_goes_to_the_newest_revision_with_passing_evidence(world: World) -> None:
    gate_and_promote(world.tools())  # revisions 2-4: the second build, with evidence
    world.platform.deploy(PRODUCTION, {"version": 99}, replicas=4)  # somebody's helm upgrade
    world.pass_development(world.platform.deploy(STAGING, {"version": 3}))
    world.gates.outcomes["production"] = Outcome.FAIL

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)


def test_rollback_by_hand_returns_to_a_withdrawn_build_only_by_its_number(world: World) -> None:
    world.probes = lambda _: ProbeSample(total=10, failures=10, latencies_seconds=(), healthy=False)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
    history = world.platform.releases[PRODUCTION.release]
    withdrawn = next(r for r in history if r.build == world.platform.build(STAGING, {"version": 2}))
    del history[: history.index(withdrawn)]

    tools = world.tools(source=PRODUCTION)
    refused = manual_rollback(tools, to=None, reason="by hand")
    assert refused.exit_code == ExitCode.USAGE
    assert "no earlier revision with a build that was not rolled back" in refused.conclusion

    done = manual_rollback(world.tools(source=PRODUCTION), to=withdrawn.number, reason="by hand")
    assert done.exit_code == ExitCode.OK


def test_a_failed_rollback_taken_up_by_hand_does_not_return_to_what_it_left(world: World) -> None:
    for version in (2, 3, 2):
        world.pass_development(world.platform.deploy(STAGING, {"version": version}))
        assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    left_build = world.platform.build(STAGING, {"version": 2})
    history = world.platform.releases[PRODUCTION.release]
    others = {each.build.digest: each for each in history if each.build != left_build}
    world.platform.never_ready_again.update(others)
    left_serving = world.platform.serving(PRODUCTION)

    for _ in range(2):
        tools = world.tools(source=PRODUCTION)
        evidence = manual_rollback(tools, to=None, reason="customers complain")
        assert evidence.exit_code == ExitCode.NEEDS_PERSON
        assert world.platform.serving(PRODUCTION) == left_serving
        tried = replace(list(others.values())[-1], status=RevisionStatus.FAILED)
        history.append(replace(tried, number=history[-1].number + 1))


def test_rollback_of_nothing_or_to_a_wrong_number_says_so(world: World) -> None:
    wrong = manual_rollback(world.tools(source=PRODUCTION), to=0, reason="by hand")
    assert "has no revision 0" in wrong.conclusion
    del world.platform.releases[PRODUCTION.release]
    nothing = manual_rollback(world.tools(source=PRODUCTION), to=None, reason="by hand")
    assert nothing.exit_code == ExitCode.USAGE
    assert "nothing is deployed" in nothing.conclusion
    assert "--to REVISION" not in nothing.conclusion


def test_rollback_by_hand_returns_to_the_build_before(world: World) -> None:
    gate_and_promote(world.tools())
    tools = world.tools(source=PRODUCTION)

    evidence = manual_rollback(tools, to=None, reason="customers complain")

    assert evidence.exit_code == ExitCode.OK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)
