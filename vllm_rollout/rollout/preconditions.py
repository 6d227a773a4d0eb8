"""Preconditions of a promotion besides passing gates: order, soak, sign-off, windows, on-call.

`before_gates` and `unmet_needs` are asked first, so that nothing is put under load for nothing.
`reusable_run` finds evidence that a person has signed off, which the next run goes by.
`still_to_wait_for` is asked when the gates have passed. An emergency override waives what only
takes time or people. Right before a change, `build_drift` compares the build that was gated with
what is there; a tag may move under an unchanged build, so the images that replicas really run are
compared too.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, newest_served
from vllm_rollout.model.errors import (
    DeployError,
    ExitCode,
    RolloutError,
    UnreachableError,
    UsageError,
)
from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.next_command import promote_command
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.audit_log import AuditLogReader, Decision, DecisionKind, who_of
from vllm_rollout.rollout.evidence_store import PassedRevisionsReader, check_key_of_run
from vllm_rollout.rollout.gates import Gates, check_room
from vllm_rollout.rollout.identity import unproved
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.promotion_blockers import nobody_on_call, reasons_to_wait
from vllm_rollout.rollout.run import RolloutResult, Run, RunLog
from vllm_rollout.rollout.sign_offs import (
    SignOff,
    SignOffs,
    SignOffsReader,
    how_to_sign,
    rolled_back_before,
    unusable,
)


class UnmetNeedError(RolloutError):
    """Something is missing that the run would need after it had changed the target."""

    exit_code = ExitCode.INCONCLUSIVE


def build_drift(
    platform: ReleaseReader, source: Deployment, revision: Revision, run: GateRun, build: Build
) -> RolloutResult | None:
    """Return a refusal if `build` differs from the build that `run` gated; None if it is the same.

    `revision` is the source's revision to gate, `run` the gates' own record, `build` the build that
    chart and values make now. The source is read again: another revision may have been deployed
    while the gates ran, or after them.
    """
    if run.build is None:
        return _refused(["the gates saw no build"])
    differences = run.build.differences(build)
    if run.revision != revision.number:
        differences.append(
            f"revision: {revision.number} was to be gated, the gates saw {run.revision}"
        )
    now = newest_served(platform.history(source))
    if now is None:
        differences.append(f"revision: {revision.number} -> {source} serves nothing")
    elif now.number != revision.number or not run.is_about(now):
        again = " (made again)" if now.number == revision.number else ""
        differences.append(f"revision: {revision.number} -> {now.number}{again}")
        differences += run.build.differences(now.build)
    differences += _not_as_gated(platform, source, build, run.images)
    return _refused(list(dict.fromkeys(differences))) if differences else None


def other_images(gated: Sequence[str], replicas: Sequence[Replica], build: Build) -> list[str]:
    """Return how the images that `replicas` run for `build` differ from the `gated` ones.

    An image that is named by its digest cannot be another one. For any other, an unknown digest is
    a difference, except where replicas run no images.
    """
    if build.image_digest:
        return []
    running = [r for r in replicas if r.ready and r.build in ("", build.digest)]
    if not gated and all(r.image is None for r in running):
        return []
    known = ", ".join(gated) or "not known"
    if not running:
        return [f"image: {known} -> no replica is ready that runs it"]
    return [
        f"image: {known} -> {r.name} runs {r.image or 'what is not known'} "
        "(its name has a tag, which may move: name it by its digest)"
        for r in running
        if not r.image or r.image not in gated
    ]


def _not_as_gated(
    platform: ReleaseReader, deployment: Deployment, build: Build, gated: Sequence[str]
) -> list[str]:
    """Return how what runs in `deployment` differs from the `gated` images, or from what was
    rendered."""
    other = other_images(gated, platform.replicas(deployment), build)
    return [*other, *platform.running_differences(deployment)]


def same_images(
    platform: ReleaseReader, deployment: Deployment, build: Build, gated: Sequence[str]
) -> None:
    """Return if what runs in `deployment` is what was rendered for its build, and replicas that run
    `build` run the images that were gated.

    Raises:
        DeployError: it is not, or it is not known; the message names what differs.
    """
    if other := _not_as_gated(platform, deployment, build, gated):
        raise DeployError(f"{deployment} does not run what was gated: {'; '.join(other)}")


def _refused(differences: list[str]) -> RolloutResult:
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE,
        conclusion="What would be promoted is not what was gated, nothing promoted: "
        + "; ".join(differences),
    )


def before_gates(
    run: Run, platform: ReleaseReader, log: RunLog, revision: Revision
) -> RolloutResult | None:
    """Return the result of a rollout that ends before its gates; None where it goes on."""
    if run.emergency is not None:
        log.log_step(f"EMERGENCY OVERRIDE by {run.emergency.by}", run.emergency.reason)
    if revision.build.of_earlier_version:
        return RolloutResult(
            code=ExitCode.INCONCLUSIVE,
            conclusion=f"Nothing promoted: build {revision.build.short} was gated by an earlier "
            "version of vllm-rollout, which did not look at what is rendered: deploy it to "
            f"{run.source.environment} with this version, and gate again",
        )
    if missing := _stages_without_evidence(run, platform, revision):
        earlier = ", ".join(missing)
        reason = f"build {revision.build.short} has no passing evidence of {earlier}"
        if not log.waive(reason):
            return RolloutResult(
                code=ExitCode.INCONCLUSIVE,
                conclusion=f"Stages are not skipped: {reason}. Deploy it to {missing[0]} and run "
                + promote_command(run.source.model, run.source.environment)
                + " first; or, in an emergency, --emergency --reason TEXT --as NAME",
            )
    decisions = AuditLogReader(platform.store).whole(run.source.model)
    here = (run.source.environment, revision.build.digest)
    about = (each for each in decisions if (each.environment, each.build) == here)
    for line in unproved(about, run.policy):
        log.log_step("a sign-off does not count", line, Outcome.INCONCLUSIVE)
    for sign_off in _sign_offs(run, platform, revision, decisions):
        if not sign_off.approved:
            return RolloutResult(
                code=ExitCode.GATE_FAILED,
                conclusion=f"Nothing promoted: revision {revision.number} of {run.source} was "
                f"{sign_off} (evidence {sign_off.evidence}). Deploy another build, or have that "
                "evidence signed off after all",
            )
    return _rolled_back_before(run, log, revision, decisions)


def _rolled_back_before(
    run: Run, log: RunLog, revision: Revision, decisions: Sequence[Decision]
) -> RolloutResult | None:
    """Return the refusal of a build that was rolled back from the target, unless somebody asks for
    it again."""
    why = rolled_back_before(decisions, run.target, revision.build)
    if not why:
        return None
    if run.again:
        log.log_step(f"asked for again by {run.again}: {run.reason}", why)
        return None
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE,
        conclusion=f"Nothing promoted: {why}",
    )


def unmet_needs(
    run: Run, platform: ReleaseReader, log: RunLog, observer: DeploymentObserver
) -> None:
    """Return if what the run needs once it has changed the target is there beforehand.

    Raises:
        UnmetNeedError: the bearer key or the address is refused, the reports folder cannot be
            written, or the model registry's command is not installed.
        UnreachableError: the smoke gate's router or Prometheus does not answer.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        check_room(run.folder)
    except OSError as error:
        raise UnmetNeedError(
            f"{run.folder} cannot be written, where the gates leave their evidence: {error}",
            remedy="Make room there, or name another folder with --report-dir.",
        ) from error
    try:
        check_key_of_run(run.policy.evidence)
    except UsageError as error:
        raise UnmetNeedError(f"{error}; nothing was changed", remedy=error.remedy) from error
    command = run.policy.model_registry.register_command
    if run.serves_users and command and shutil.which(command[0]) is None:
        raise UnmetNeedError(
            f"model_registry.register_command is not installed here: {command[0]}",
            remedy="Install it, or correct the policy.",
        )
    gates = run.policy.environments[run.target.environment].gates
    if run.serves_users and gates.live_metrics is not None:
        for undecided in observer.reach_metrics(run.target):
            log.log_step("Prometheus, by the servers as they are, cannot decide all", undecided)
    router = gates.smoke.url if gates.smoke is not None else None
    if router is None and newest_served(platform.history(run.target)) is None:
        return  # nobody is there yet who could be asked
    try:
        refusal = observer.refusal_at_users_address(run.target)
    except UnreachableError as error:
        if router is None:
            return  # what serves is down: this build may repair it
        key = f"environments.{run.target.environment}.gates.smoke.url"
        raise UnreachableError(
            f"the smoke gate's router does not answer, and nothing was changed: {error}",
            address=error.address,
            remedy=f"Name the router's address in {key}, or go by the platform's own: "
            f"--set {key}=off",
        ) from error
    if refusal is not None:
        reason, remedy = refusal
        raise UnmetNeedError(f"{reason}; nothing was changed", remedy=remedy)


def reusable_run(
    run: Run, platform: ReleaseReader, log: RunLog, gates: Gates, revision: Revision
) -> GateRun | None:
    """Return the gate run of signed, fresh evidence about this revision, build and policy, if any.

    Not where a promotion of this build has begun since: a build that was tried on that evidence and
    did not last is gated again. That it still serves is verified again.
    """
    source = run.source
    if run.policy.environments[source.environment].sign_off is None:
        return None
    decisions = AuditLogReader(platform.store).whole(source.model)
    for sign_off in _sign_offs(run, platform, revision, decisions):
        if not sign_off.approved:
            continue
        signed = sign_off.run
        why = sign_off.void or unusable(signed, run.policy, source.environment, revision, log.now())
        if signed is not None and not why:
            left_out = _own_gates(gates.runner.own_gates) - {g.gate for g in signed.gates}
            if left_out:
                why = f"gates of your own are not in it: {', '.join(sorted(left_out))}"
        if signed is None or why:
            log.log_step(f"evidence {sign_off.evidence} is not used", why)
            continue
        serves = gates.verify(source)
        if serves.outcome is not Outcome.PASS:
            return None
        log.gate_runs.append(signed)
        log.sign_off = str(sign_off)
        log.log_step(
            f"{source.environment} gates are not run again: evidence {sign_off.evidence}",
            f"{sign_off}; its gates passed {signed.finished:%Y-%m-%d %H:%M:%S %Z} on this "
            "revision, which still serves",
            Outcome.PASS,
        )
        return signed
    return None


def still_to_wait_for(
    run: Run, platform: ReleaseReader, log: RunLog, revision: Revision, *, signed: bool
) -> RolloutResult | None:
    """Return what blocks the promotion of a build whose gates passed; None if nothing does.

    `signed` is whether its evidence is signed off.
    """
    reasons = [
        reason
        for reason in reasons_to_wait(
            platform, run.policy, run.source, run.target, revision, log.now()
        )
        if not log.waive(reason)
    ]
    if run.serves_users and (reason := nobody_on_call(run.policy.windows.on_call)):
        reasons += [] if log.waive(reason) else [reason]
    waits_for = "; ".join(reasons)
    rules = run.policy.environments[run.source.environment]
    unsigned = bool(rules.sign_off) and not signed
    awaits_sign_off = unsigned and not log.waive("the evidence is not signed off")
    if awaits_sign_off:
        reasons.append(
            "the evidence waits for sign-off: read the report, then "
            f"{how_to_sign(run.policy, run.source, 'DIGEST')} (or --reject)"
        )
    if not reasons:
        return None
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE,
        conclusion=f"All gates passed, and {'; '.join(reasons)}",
        waits_for=waits_for,
        awaits_sign_off=awaits_sign_off,
    )


def record_override(run: Run, log: RunLog, revision: Revision, evidence_digest: str) -> None:
    """Append an emergency override to the audit log, before anything is changed by it."""
    emergency = run.emergency
    if emergency is None:
        return
    over = "; ".join(log.waived) or "nothing had to be passed over"
    log.log_step(f"passed over by {emergency.by}", over)
    log.append_audit(
        DecisionKind.OVERRIDE,
        f"{emergency.reason}; passed over: {over}",
        who=who_of(emergency.by, run.who),
        build=revision.build.digest,
        evidence=evidence_digest,
    )


def notify_of_end(log: RunLog, kind: DecisionKind, result: RolloutResult) -> None:
    """Send a message about the end of the run: no refusal where only time or a person is missing,
    and nothing that was the last message already.

    The request for a sign-off is sent by `ask_for_sign_off`, when there is something to sign.
    """
    if not (result.waits_for or result.awaits_sign_off):
        if log.told != (kind, result.conclusion):
            log.notify(kind, result.conclusion)
    elif result.waits_for:
        log.notify(MessageKind.WAITING, result.waits_for)


def ask_for_sign_off(
    run: Run, platform: ReleaseWriter, log: RunLog, evidence: Evidence, *, notify: bool
) -> None:
    """Note that this stored evidence waits for a sign-off; and `notify` the people who sign."""
    try:
        SignOffs(platform.store, run.source.model).ask(run.source, evidence.digest)
    except RolloutError as error:
        log.reporter.progress(f"status will not show what waits for sign-off: {error}")
    if not notify:
        return
    command = how_to_sign(run.policy, run.source, evidence.digest)
    log.notify(
        MessageKind.UNSIGNED,
        f"The {run.source.environment} gates passed. Read the report of run {run.id}, "
        f"then: {command} (or --reject)",
    )


def _own_gates(paths: Iterable[Path]) -> set[str]:
    """Return the names that the gates in these files and folders have in evidence."""
    files = [f for path in paths for f in (path.rglob("test_*.py") if path.is_dir() else [path])]
    return {file.stem.removeprefix("test_") for file in files}


def _stages_without_evidence(run: Run, platform: ReleaseReader, revision: Revision) -> list[str]:
    order, source = run.policy.order, run.source
    passed = PassedRevisionsReader(platform.store)
    return [
        name
        for name in order[: order.index(source.environment)]
        if not passed.build_passed(
            run.policy.deployment(source.model, name), revision.build, run.policy.evidence
        )
    ]


def _sign_offs(
    run: Run, platform: ReleaseReader, revision: Revision, decisions: Sequence[Decision]
) -> list[SignOff]:
    if run.policy.environments[run.source.environment].sign_off is None:
        return []
    known = SignOffsReader(platform.store, run.source.model)
    return known.about(run.source.environment, revision, decisions, run.policy)
