"""What a rollout does, and what it must never do."""

from datetime import timedelta
from typing import Any

import pytest
from support.crashing import Killed
from support.world import (
    MODEL,
    PRODUCTION,
    RAMP,
    STAGING,
    ListReporter,
    World,
    builds,
    changes,
    healthy,
    kinds,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import AccessError, ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.symptoms import Event, Symptoms
from vllm_rollout.platform.base import ROUTER_GONE, ConflictError
from vllm_rollout.report.html import summary_html
from vllm_rollout.rollout import engine
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.journal import Journal, Phase
from vllm_rollout.rollout.lease import hold


def test_a_passing_build_reaches_production_step_by_step(world: World) -> None:
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert changes(world) == RAMP
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)
    assert [run.deployment.environment for run in evidence.runs] == ["staging", "production"]
    assert world.clock.seconds >= 2 * 3600 + 600  # two holds of an hour, and the watch


@pytest.mark.parametrize(
    ("outcome", "unreachable", "code"),
    [
        (Outcome.FAIL, "", ExitCode.GATE_FAILED),
        (Outcome.INCONCLUSIVE, "", ExitCode.INCONCLUSIVE),
        (Outcome.PASS, "http://nowhere:1", ExitCode.UNREACHABLE),
    ],
)
def test_nothing_is_promoted_unless_every_staging_gate_passes(
    world: World, outcome: Outcome, unreachable: str, code: ExitCode
) -> None:
    world.gates.outcomes["staging"] = outcome
    world.gates.unreachable = unreachable

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == code
    assert evidence.outcome is not Outcome.PASS
    assert changes(world) == []
    assert "nothing promoted" in evidence.conclusion


def test_values_edited_after_the_gates_are_not_promoted_and_the_difference_is_shown(
    world: World,
) -> None:
    edited: list[object] = []
    world.gates.during = edited.append
    real_build = world.platform.build
    world.platform.build = lambda deployment, values: real_build(  # type: ignore[method-assign]
        deployment, {**values, "edited": bool(edited)} if edited else values
    )

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "not what was gated" in evidence.conclusion
    assert f"values_digest: {world.platform.history(STAGING)[0].build.values_digest} -> " in (
        evidence.conclusion
    )
    assert changes(world) == []


@pytest.mark.parametrize("same_build", [False, True])
def test_a_staging_revision_that_came_while_the_gates_ran_stops_the_promotion(
    world: World, same_build: bool
) -> None:
    def replace_staging(deployment: object) -> None:
        if deployment == STAGING:
            world.platform.deploy(STAGING, {"version": 2 if same_build else 3})

    world.gates.during = replace_staging

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "not what was gated" in evidence.conclusion
    assert "revision: 1 -> 2" in evidence.conclusion
    assert ("values_digest" in evidence.conclusion) is not same_build
    assert changes(world) == []


def test_a_staging_revision_that_came_after_the_gates_stops_the_promotion(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deployed_while_waiting(*_: object, **_more: object) -> None:
        world.platform.deploy(STAGING, {"version": 3})

    monkeypatch.setattr(engine, "still_to_wait_for", deployed_while_waiting)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "revision: 1 -> 2" in evidence.conclusion
    assert changes(world) == []


def test_every_decision_is_in_the_chain_with_its_evidence(world: World) -> None:
    world.gates.outcomes["staging"] = Outcome.FAIL
    refused = gate_and_promote(world.tools())
    world.gates.outcomes.clear()
    gate_and_promote(world.tools(), plan_only=True)
    assert kinds(world) == ["refusal"]
    promoted = gate_and_promote(world.tools())
    gate_and_promote(world.tools())  # nothing to do, nothing decided
    by_hand = world.tools(source=PRODUCTION)
    manual_rollback(by_hand, to=None, reason="customers complain")

    assert kinds(world) == ["refusal", "promotion", "promoted", "rollback", "rolled-back"]
    decisions = AuditLog(world.platform.store).of(MODEL)
    assert decisions[0].evidence == refused.digest
    assert decisions[2].evidence == promoted.digest
    assert decisions[1].build == decisions[2].build == builds(world)[1]
    assert decisions[3].why == "back to revision 1: customers complain"
    assert {decision.who for decision in decisions} == {"ada"}


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_stepped_in_the_middle_changes_nothing(world: World, hours: int) -> None:
    def step(deployment: object) -> None:
        world.clock.wall += timedelta(hours=hours)

    world.gates.during = step

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert changes(world) == RAMP
    assert world.clock.seconds >= 2 * 3600 + 600  # holds and watch are as long as ever


def test_plan_leaves_an_unfinished_rollout_as_it_is(world: World) -> None:
    world.platform.kill_at = "apply production 2/4"
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    left, calls = world.journal(), list(changes(world))

    evidence = gate_and_promote(world.tools(), plan_only=True)

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "gate-and-promote llama-2-7b --to production" in evidence.conclusion
    assert (world.journal(), changes(world)) == (left, calls)


def test_plan_runs_the_gates_and_changes_nothing(world: World) -> None:
    evidence = gate_and_promote(world.tools(), plan_only=True)

    assert evidence.exit_code == ExitCode.OK
    assert changes(world) == []
    story = "\n".join(step.title for step in evidence.steps)
    assert "would bring 1 of 4 replicas" in story
    assert "shares" not in story
    world.platform.scalers = ("HorizontalPodAutoscaler hpa",)
    steps = gate_and_promote(world.tools(), plan_only=True).steps
    shares = "would take these shares of the replicas that HorizontalPodAutoscaler hpa asks for"
    assert shares in [step.title for step in steps]
    assert "return to revision 1" in story


def test_a_soak_that_is_not_over_waits(world: World) -> None:
    world.overrides["environments.staging.soak.minimum"] = "31h"

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "1h are left" in evidence.conclusion
    assert changes(world) == []


def test_outside_the_deployment_window_nothing_is_promoted(world: World) -> None:
    world.clock.seconds = 2 * 24 * 3600  # Friday

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "friday is not a deployment day" in evidence.conclusion
    assert "Monday 2026-11-23 09:00" in evidence.conclusion
    assert changes(world) == []


def test_a_step_that_cannot_be_watched_does_not_go_on(world: World) -> None:
    world.overrides["ramp"] = [{"replicas": 1, "hold": "1h"}, {"share": "100%", "hold": "0s"}]
    world.probes = lambda _seconds: ProbeSample(
        total=10, failures=0, latencies_seconds=(), healthy=True
    )
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "went blind (P95 latency)" in evidence.conclusion
    assert changes(world) == ["apply production 1/4"]
    world.probes = healthy
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert changes(world)[1] == "rollback production 1"


def test_why_replicas_did_not_come_up_is_in_the_report(world: World) -> None:
    trouble = Symptoms(
        replica=Replica(name="pod-a", phase="Pending", ready=False, restarts=0),
        requests={"nvidia.com/gpu": 4.0},
        scarce="nvidia.com/gpu",
        events=(
            Event("FailedScheduling", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        ),
    )

    world.platform.fail_apply_at, world.platform.trouble = 1, (trouble,)
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.GATE_FAILED
    (step,) = (each for each in evidence.steps if each.title.startswith("pod-a: "))
    assert "waits for 4 nvidia.com/gpu" in step.title
    assert "add GPU nodes" in step.detail
    assert "add GPU nodes" in summary_html(evidence)


def test_a_first_step_that_never_gets_ready_promotes_nothing(world: World) -> None:
    world.platform.fail_apply_at = 1

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.GATE_FAILED
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)


@pytest.mark.parametrize("kill_at", RAMP)
def test_a_run_killed_in_the_ramp_is_undone_and_the_rollout_done_anew(
    world: World, kill_at: str
) -> None:
    world.platform.kill_at = kill_at
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    world.platform.calls.clear()

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert "was under way and did not finish" in evidence.steps[0].title
    assert changes(world) == ["rollback production 1", *RAMP]
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)


def test_a_run_killed_while_watching_is_watched_to_its_end(world: World) -> None:
    class KilledWatching(BaseException):
        pass

    def probes(_seconds: float) -> ProbeSample:
        if len(changes(world)) == 3 and world.gates.during is None:
            entry = world.journal()
            if entry is not None and entry.phase is Phase.WATCH:
                world.gates.during = lambda _deployment: None
                raise KilledWatching
        return ProbeSample(total=10, failures=0, latencies_seconds=(0.1,) * 10, healthy=True)

    world.probes = probes
    with pytest.raises(KilledWatching):
        gate_and_promote(world.tools())
    before = world.clock.seconds

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert changes(world) == RAMP  # nothing was changed again
    assert world.clock.seconds - before >= 600


def test_a_watch_is_not_resumed_over_what_other_hands_deployed(world: World) -> None:
    gate_and_promote(world.tools())
    journal = Journal(world.platform.store, MODEL)
    entry = journal.read()
    assert entry is not None
    journal.advance(entry, Phase.WATCH, "killed here", now=world.clock.now())
    world.platform.deploy(PRODUCTION, {"version": 99}, replicas=4)
    world.platform.calls.clear()

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "revision 5, 'deployed by the test'" in evidence.conclusion
    assert changes(world) == []
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert changes(world) == RAMP
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)


def test_a_second_run_finds_nothing_to_do_but_to_bring_back_what_died(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_and_promote(world.tools())
    world.platform.calls.clear()

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.OK
    assert "already runs build" in evidence.conclusion
    assert changes(world) == []

    world.gates.outcomes["verify"] = Outcome.FAIL  # it was well then, and is not now
    says = "its router is not running: vllm-rollout up m brings it back"
    gone = Replica(
        name="r", phase="Running", ready=False, restarts=0, reason=ROUTER_GONE, message=says
    )
    monkeypatch.setattr(type(world.platform), "replicas", lambda *_: [gone, gone])
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.GATE_FAILED
    assert evidence.conclusion.endswith(f"; {says}")
    assert changes(world) == []

    def bring_back(deployment: Deployment, *, timeout: timedelta) -> str:
        world.gates.outcomes["verify"] = Outcome.PASS
        return f"the router of {deployment} was started again within {timeout}"

    monkeypatch.setattr(world.platform, "recover", bring_back)
    assert gate_and_promote(world.tools(), plan_only=True).exit_code == ExitCode.GATE_FAILED
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (UnreachableError("no answer", address="the store"), 6),
        (AccessError("the token has ended", address="the store"), 1),
    ],
)
def test_a_store_that_refuses_the_evidence_is_not_asked_again(
    world: World, error: RolloutError, asked: int
) -> None:
    real = world.platform.store.write
    refused: list[str] = []

    def write(key: str, value: Any, *, expect: str | None) -> str:
        if key.startswith("evidence/"):
            refused.append(key)
            raise error
        return real(key, value, expect=expect)

    world.platform.store.write = write  # type: ignore[method-assign]
    tools = world.tools()
    tools.log.reporter = shown = ListReporter()
    evidence = gate_and_promote(tools)
    world.platform.store.write = real  # type: ignore[method-assign]

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert changes(world) == []
    assert len(refused) == 1 + asked  # the gates' evidence, and the run's
    assert "the evidence is only in the report folder" in [step.title for step in shown.steps]


def test_another_run_that_keeps_its_lease_is_left_alone(world: World) -> None:
    real = world.platform.store.acquire

    def held_by_another(name: str, holder: str, **rest: object) -> object:
        raise ConflictError(f"other:1 holds {name}")

    world.platform.store.acquire = held_by_another  # type: ignore[assignment]
    evidence = gate_and_promote(world.tools())
    world.platform.store.acquire = real  # type: ignore[method-assign]

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "other:1 holds" in evidence.conclusion
    assert changes(world) == []


def test_a_lost_lease_stops_every_change(world: World) -> None:
    def freeze(deployment: object) -> None:
        # This process was stopped, and another run came, went, and gave the lease back.
        with hold(world.platform.store, MODEL, clock=world.clock, on_wait=print):
            pass

    tools = world.tools()
    world.clock.meanwhile = lambda: None
    world.gates.during = freeze

    evidence = gate_and_promote(tools)

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "lease" in evidence.conclusion
    assert changes(world) == []


def test_ctrl_c_says_what_state_production_is_in(world: World) -> None:
    def interrupt(_seconds: float) -> ProbeSample:
        raise KeyboardInterrupt

    world.probes = interrupt

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INTERRUPTED
    assert "1 of 4 replicas on build" in evidence.conclusion
    assert evidence.conclusion.endswith(": gate-and-promote llama-2-7b --to production")


def test_a_model_that_is_not_in_staging_is_a_usage_error(world: World) -> None:
    del world.platform.releases[STAGING.release]

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.USAGE
    assert f"{MODEL} is not deployed in staging" in evidence.conclusion


def test_the_conclusion_is_not_shown_twice(world: World) -> None:
    tools = world.tools()
    tools.log.reporter = shown = ListReporter()
    evidence = gate_and_promote(tools)
    assert evidence.steps[-1].detail == evidence.conclusion  # which the command prints last
    assert (shown.steps[-1].title, shown.steps[-1].detail) == ("exit 0", "")
