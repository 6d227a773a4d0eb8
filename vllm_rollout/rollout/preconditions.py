"""What a promotion takes besides passing gates: order, soak, sign-off, windows; and the override.

`before_gates` is asked first, so that nothing is put under load for nothing. `reusable_run` finds
evidence that a person has signed off, which the next run goes by. `still_to_wait_for` is asked when
the gates have passed.
"""

from collections.abc import Iterable
from pathlib import Path

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence, GateRun, Override, evidence_key
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.on_call import nobody_on_call
from vllm_rollout.rollout.promotion_blockers import reasons_to_wait
from vllm_rollout.rollout.result import RolloutResult
from vllm_rollout.rollout.sign_offs import SignOff, SignOffs, gate_run, sign_off_command, unusable
from vllm_rollout.rollout.soak_samples import Sampling


def before_gates(context: Context, revision: Revision) -> RolloutResult | None:
    """How the rollout ends before its gates; None where it goes on."""
    if context.emergency is not None:
        context.say(f"EMERGENCY OVERRIDE by {context.emergency.by}", context.emergency.reason)
    if missing := _stages_without_evidence(context, revision):
        earlier = ", ".join(missing)
        reason = f"build {revision.build.short} has no passing evidence of {earlier}"
        if not _passed_over(context, reason):
            return RolloutResult(
                code=ExitCode.INCONCLUSIVE,
                conclusion=f"Stages are not skipped: {reason}. Deploy it to {missing[0]} and run "
                f"gate-and-promote {context.source.model} --to {context.source.environment} first; "
                "or, in an emergency, --emergency --reason TEXT --as NAME",
            )
    for sign_off in _sign_offs(context, revision):
        if not sign_off.approved:
            return RolloutResult(
                code=ExitCode.GATE_FAILED,
                conclusion=f"Nothing promoted: revision {revision.number} of {context.source} was "
                f"{sign_off} (evidence {sign_off.evidence}). Deploy another build, or have that "
                "evidence signed off after all",
            )
    return None


def note_health(context: Context, deployment: Deployment, revision: Revision) -> None:
    """Take a sample for the soak, where samples are its source; what goes wrong is a gap."""
    sampling = Sampling.of(context.platform.store, context.policy, deployment, revision)
    if sampling is None:
        return
    try:
        with context.looks.at(deployment) as look:
            sight = look()
        sampling.see(context.clock.now(), sight.replicas, sight.probes)
    except RolloutError as error:
        context.reporter.progress(f"no sample for the soak: {error}")


def reusable_run(context: Context, revision: Revision) -> GateRun | None:
    """The gates of signed, fresh evidence about this very revision, build and policy, if any.

    Not where the target has seen this build since: what was tried on that evidence and did not
    last is gated anew. That it still serves is asked again.
    """
    for sign_off in _sign_offs(context, revision):
        if not sign_off.approved:
            continue
        key = evidence_key(context.source.model, sign_off.evidence)
        try:
            evidence = SignOffs(context.platform.store, context.source.model).kept(key)
        except RolloutError:
            continue
        run = gate_run(evidence, context.source.environment)
        why = unusable(
            run, context.policy, context.source.environment, revision, context.clock.now()
        )
        if run is not None and not why:
            left_out = _own_gates(context.runner.own_gates) - {g.gate for g in run.gates}
            if left_out:
                why = f"gates of your own are not in it: {', '.join(sorted(left_out))}"
        if run is None or why:
            context.say(f"evidence {sign_off.evidence} is not used", why)
            continue
        if any(
            r.build == revision.build and r.created >= run.finished
            for r in context.platform.history(context.target)
        ):
            context.say(
                f"evidence {sign_off.evidence} is not used",
                f"a promotion of this build to {context.target} has rested on it before",
            )
            continue
        serves = context.verify(context.source)
        if serves.outcome is not Outcome.PASS:
            return None
        context.runs.append(run)
        context.signed = True
        context.say(
            f"{context.source.environment} gates are not run again: evidence {sign_off.evidence}",
            f"{sign_off}; its gates passed {run.finished:%Y-%m-%d %H:%M:%S %Z} on this revision, "
            "which still serves",
            Outcome.PASS,
        )
        return run
    return None


def still_to_wait_for(context: Context, revision: Revision) -> RolloutResult | None:
    """What keeps a build from promotion whose gates have passed; None if nothing does."""
    reasons = [
        reason
        for reason in reasons_to_wait(
            context.platform,
            context.policy,
            context.source,
            context.target,
            revision,
            context.clock.now(),
        )
        if not _passed_over(context, reason)
    ]
    if context.serves_users and (reason := nobody_on_call(context.policy.windows.on_call)):
        reasons += [] if _passed_over(context, reason) else [reason]
    context.waits_for = "; ".join(reasons)
    rules = context.policy.environments[context.source.environment]
    if (
        rules.sign_off
        and not context.signed
        and not _passed_over(context, "the evidence is not signed off")
    ):
        context.awaits_sign_off = True
        reasons.append(
            f"the evidence waits for sign-off: read the report, then vllm-rollout sign-off "
            f"{context.source.model} --evidence DIGEST --as NAME (or --reject)"
        )
    if reasons:
        return RolloutResult(
            code=ExitCode.INCONCLUSIVE, conclusion=f"All gates passed, and {'; '.join(reasons)}"
        )
    return None


def record_override(context: Context, revision: Revision, evidence_digest: str) -> None:
    """Put an emergency override into the chain of decisions, before anything is changed by it."""
    emergency = context.emergency
    if emergency is None:
        return
    over = "; ".join(emergency.passed_over) or "nothing was in its way"
    context.say(f"passed over by {emergency.by}", over)
    context.decisions.append(
        DecisionKind.OVERRIDE,
        model=context.target.model,
        environment=context.target.environment,
        at=context.clock.now(),
        who=f"{emergency.by} (as {context.who})",
        why=f"{emergency.reason}; passed over: {over}",
        run_id=context.run_id,
        build=revision.build.digest,
        evidence=evidence_digest,
    )


def override_of(context: Context) -> Override | None:
    """The emergency override, for the evidence."""
    emergency = context.emergency
    if emergency is None:
        return None
    return Override(
        by=emergency.by, reason=emergency.reason, passed_over=tuple(emergency.passed_over)
    )


def tell_the_end(context: Context, kind: DecisionKind, conclusion: str) -> None:
    """Tell people how the run ended. Where only time or a person is missing, that is no refusal.

    What a person is asked for is told by `ask_for_sign_off`, when there is something to sign.
    """
    if not (context.waits_for or context.awaits_sign_off):
        context.notify(kind, conclusion)
    elif context.waits_for:
        context.notify(MessageKind.WAITING, context.waits_for)


def ask_for_sign_off(context: Context, evidence: Evidence, *, tell: bool) -> None:
    """Note that this evidence, which is kept, waits for a person; and `tell` people what to do."""
    if not context.awaits_sign_off:
        return
    model = context.source.model
    try:
        SignOffs(context.platform.store, model).ask(context.source, evidence.digest)
    except RolloutError as error:
        context.reporter.progress(f"status will not show what waits for sign-off: {error}")
    if not tell:
        return
    command = sign_off_command(model, evidence.digest)
    context.notify(
        MessageKind.UNSIGNED,
        f"The {context.source.environment} gates passed. Read the report of run {context.run_id}, "
        f"then: {command} (or --reject)",
    )
    for line in context.undelivered():
        context.reporter.progress(f"a message did not arrive: {line}")


def begin_soak(context: Context, end: RolloutResult) -> None:
    """Take the first sample of what was just promoted."""
    if end.code is not ExitCode.OK:
        return
    revision = newest_served(context.platform.history(context.target))
    if revision is not None:
        note_health(context, context.target, revision)


def _own_gates(paths: Iterable[Path]) -> set[str]:
    """What the gates in these files and folders are called in evidence."""
    files = [f for path in paths for f in (path.rglob("test_*.py") if path.is_dir() else [path])]
    return {file.stem.removeprefix("test_") for file in files}


def _passed_over(context: Context, reason: str) -> bool:
    """Whether an emergency passes over what would stop the rollout; it is noted then."""
    if context.emergency is None:
        return False
    context.emergency.passed_over.append(reason)
    return True


def _stages_without_evidence(context: Context, revision: Revision) -> list[str]:
    order = context.policy.order
    earlier = order[: order.index(context.source.environment)]
    return [
        name
        for name in earlier
        if not context.ledger.build_passed(
            Deployment(context.source.model, name, context.source.namespace), revision.build
        )
    ]


def _sign_offs(context: Context, revision: Revision) -> list[SignOff]:
    if context.policy.environments[context.source.environment].sign_off is None:
        return []
    known = SignOffs(context.platform.store, context.source.model)
    return known.about(context.source.environment, revision)
