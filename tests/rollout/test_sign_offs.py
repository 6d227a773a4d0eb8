"""Sign-off: whose word takes a build on, and what it was given for."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.crashing import Killed
from support.world import (
    MODEL,
    PRODUCTION,
    RAMP,
    SIGN_OFF,
    STAGING,
    World,
    decide,
    failing_when,
    gates_run,
    healthy,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.rollout.audit_log import AuditLog, AuditLogReader, DecisionKind
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import find_evidence
from vllm_rollout.rollout.model_status import model_status
from vllm_rollout.rollout.sign_offs import sign_off_of


def test_passing_gates_wait_for_a_person_whose_word_takes_the_build_on(world: World) -> None:
    del world.overrides[SIGN_OFF]
    ran = gates_run(world)

    pending = gate_and_promote(world.tools(), plan_only=True)
    assert any("would bring 1 of 4 replicas" in step.title for step in pending.steps)
    assert pending.exit_code == ExitCode.INCONCLUSIVE
    assert pending.awaits_sign_off
    assert world.platform.calls == []
    policy = world.tools().run.policy
    (block,) = model_status(
        world.platform, policy, MODEL, world.clock.now()
    ).environments[1].blocks  # fmt: skip
    assert f"sign-off {MODEL} --evidence {pending.digest[7:23]}" in block

    decide(world, pending)
    world.clock.sleep(timedelta(hours=1))
    promoted = gate_and_promote(world.tools())
    assert promoted.exit_code == ExitCode.OK, promoted.conclusion
    assert world.platform.calls == RAMP
    assert ran == ["staging", "production"]  # staging was loaded once, for the evidence
    assert promoted.runs[0] == pending.runs[0]
    assert any("signed off by Grace of QA" in step.detail for step in promoted.steps)
    chain = AuditLog(world.platform.store)
    (entry,) = [d for d in chain.of(MODEL) if d.kind is DecisionKind.SIGN_OFF]
    assert (entry.who, entry.evidence) == ("Grace of QA (as grace)", pending.digest)


def test_people_are_asked_to_sign_with_the_command_and_told_what_else_is_missing(
    world: World,
) -> None:
    del world.overrides[SIGN_OFF]

    def told(**options: bool) -> list[tuple[str, str]]:
        said: list[tuple[str, str]] = []
        tools = world.tools(
            notify=lambda kind, text, **_: said.append((kind, text)),
            undelivered=lambda **_: ["unsigned to team: it is down"] if said else [],
        )
        evidence = gate_and_promote(tools, **options)
        assert evidence.exit_code == ExitCode.INCONCLUSIVE
        assert evidence.awaits_sign_off is ("soak" not in evidence.conclusion)
        for _, text in said:
            assert "DIGEST" not in text
        assert (evidence.digest[7:23] in str(said)) == bool(said)
        return said

    assert told(plan_only=True) == []
    ((kind, text),) = told()
    assert kind == "unsigned"
    assert text.endswith(" --as YOUR-NAME (or --reject)")

    world.overrides["environments.staging.soak.observed_by"] = "samples"
    world.clock.seconds = 2 * 24 * 3600  # Friday
    (waiting, why), (unsigned, _) = told()
    assert (waiting, unsigned) == ("waiting", "unsigned")
    assert "the soak is not over" in why
    assert "friday is not a deployment day" in why
    assert "sign-off" not in why


def test_a_sign_off_counts_only_while_the_audit_log_is_whole(world: World) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    decide(world, pending, approved=False)
    decide(world, pending)
    entries = world.platform.store.entries
    (rejected,) = (
        key
        for key, entry in entries.items()
        if key.startswith("decisions/") and entry.value["decision"]["kind"] == "rejection"
    )
    entries.pop(rejected)

    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.INCONCLUSIVE
    assert "is not whole, and no decision in it counts" in evidence.conclusion
    assert world.platform.calls == []


def test_a_rejection_counts_though_its_evidence_is_gone_and_a_sign_off_does_not(
    world: World,
) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    decide(world, pending)
    document = world.platform.store.entries.pop(f"evidence/{MODEL}/{pending.digest[7:]}")
    assert gate_and_promote(world.tools()).exit_code == ExitCode.INCONCLUSIVE
    assert world.platform.calls == []

    world.platform.store.entries[document.key] = document
    decide(world, pending, approved=False)
    del world.platform.store.entries[document.key]
    assert gate_and_promote(world.tools()).exit_code == ExitCode.GATE_FAILED


def test_a_rejection_stands_until_it_is_taken_back(world: World) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    decide(world, pending, approved=False)
    ran = gates_run(world)

    refused = gate_and_promote(world.tools())
    assert refused.exit_code == ExitCode.GATE_FAILED
    assert "rejected by Grace of QA" in refused.conclusion
    assert ran == []
    policy = world.tools().run.policy
    staging = world.platform.history(STAGING)[-1]
    store, now = world.platform.store, world.clock.now()
    decisions = AuditLogReader(store).whole(MODEL)
    _, lacks = sign_off_of(store, decisions, policy, STAGING, staging, now)
    assert "rejected by Grace of QA" in lacks

    decide(world, pending)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK


@pytest.mark.parametrize(
    "change",
    [
        "stale", "revision", "made again", "policy", "clock", "own gate", "used",
        "used, and removed",
    ],
)  # fmt: skip
def test_signed_evidence_is_not_used_for_anything_but_what_was_signed(
    world: World, change: str
) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    decide(world, pending)
    if change == "stale":
        world.clock.sleep(timedelta(hours=7 * 24))
    elif change == "revision":
        world.platform.deploy(STAGING, {"version": 2})
    elif change == "policy":
        world.overrides["watch.duration"] = "20m"
    elif change == "own gate":
        world.gates.own_gates = [Path("ours/test_tone.py")]
    elif change == "clock":
        world.clock.seconds -= 3600
    elif change == "made again":
        world.platform.deploy(STAGING, {"version": 2})
        (_, newest) = world.platform.releases[STAGING.release]
        later = newest.created + timedelta(hours=2)
        world.platform.releases[STAGING.release] = [replace(newest, number=1, created=later)]
    else:  # it was promoted on this evidence, and a trigger fired
        good = world.probes
        world.probes = failing_when(lambda: world.platform.calls)
        assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
        world.probes = good
        world.clock.seconds += 1
        if change == "used, and removed":
            first = world.platform.releases[PRODUCTION.release][0]
            world.platform.releases[PRODUCTION.release] = [first]
        decide(world, pending)
    before, ran = list(world.platform.calls), gates_run(world)

    again = gate_and_promote(world.tools(again="Ada"))

    assert again.exit_code == ExitCode.INCONCLUSIVE, again.conclusion
    assert "waits for sign-off" in again.conclusion
    assert ran == ["staging"]
    assert world.platform.calls == before


def test_signed_evidence_of_a_deployment_that_no_longer_serves_is_not_enough(world: World) -> None:
    del world.overrides[SIGN_OFF]
    decide(world, gate_and_promote(world.tools()))
    world.gates.outcomes["verify"] = Outcome.FAIL
    world.gates.outcomes["staging"] = Outcome.FAIL
    assert gate_and_promote(world.tools()).exit_code == ExitCode.GATE_FAILED


def test_a_digest_is_found_by_its_beginning_and_only_if_it_is_one(world: World) -> None:
    first = gate_and_promote(world.tools())
    store = world.platform.store
    for enough in (first.digest, first.digest[7:19]):
        assert find_evidence(store, MODEL, enough) == first
    for wrong in ("abc", "../../etc", "0" * 64, ""):
        with pytest.raises(UsageError):
            find_evidence(store, MODEL, wrong)


def test_a_build_that_was_rolled_back_is_refused_until_it_is_asked_for_again(
    world: World,
) -> None:
    good, ran = world.probes, gates_run(world)
    world.probes = failing_when(lambda: world.platform.calls)
    back = gate_and_promote(world.tools())
    assert back.exit_code == ExitCode.ROLLED_BACK
    assert "exit code 5" in back.unsignable
    world.probes = good
    ran.clear()
    before = list(world.platform.calls)

    for plan_only in (True, False):
        refused = gate_and_promote(world.tools(), plan_only=plan_only)
        assert refused.exit_code == ExitCode.INCONCLUSIVE
        assert "was rolled back from production" in refused.conclusion
        assert "--to production --again --reason TEXT" in refused.conclusion
    (block,) = model_status(
        world.platform, world.tools().run.policy, MODEL, world.clock.now()
    ).environments[1].blocks  # fmt: skip
    assert "was rolled back from production" in block
    assert (world.platform.calls, ran) == (before, [])

    again = gate_and_promote(world.tools(again="Ada"))
    assert again.exit_code == ExitCode.OK
    assert any(step.title == "asked for again by Ada: a test" for step in again.steps)
    chain = AuditLog(world.platform.store).of(MODEL)
    (*_, begun) = [d for d in chain if d.kind is DecisionKind.PROMOTION]
    assert begun.who == "Ada (as ada)"


def test_a_build_is_not_held_to_account_for_a_run_that_was_killed(world: World) -> None:
    def killed(_seconds: float) -> ProbeSample:
        if world.platform.calls:
            raise Killed
        return healthy(0)

    world.probes = killed
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    world.probes = healthy
    world.gates.outcomes["staging"] = Outcome.INCONCLUSIVE
    assert gate_and_promote(world.tools()).exit_code == ExitCode.INCONCLUSIVE
    assert "rollback production 1" in world.platform.calls
    del world.gates.outcomes["staging"]
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
