"""Runs from start to end: a rollout (finish what is unfinished, gate, promote) or a rollback."""

from collections.abc import Sequence
from datetime import datetime

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.units import of_total
from vllm_rollout.next_command import next_command, promote_command, release_command
from vllm_rollout.platform.base import ConflictError, ForeignChangeError, without_router
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind, who_of
from vllm_rollout.rollout.evidence_store import (
    PassedRevisions,
    PassedRevisionsReader,
    stored_evidence,
    unsigned,
)
from vllm_rollout.rollout.held_gates import ask_kept_again
from vllm_rollout.rollout.journal import Event, JournalEntry, Phase, next_phase
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.leased_run import RunTools, run_under_lease
from vllm_rollout.rollout.lost_history import ensure_history
from vllm_rollout.rollout.preconditions import (
    before_gates,
    build_drift,
    record_override,
    reusable_run,
    still_to_wait_for,
    unmet_needs,
)
from vllm_rollout.rollout.promotion import (
    Promotion,
    describe,
    promote,
    refused,
    watch_to_the_end,
)
from vllm_rollout.rollout.promotion_blockers import wait_until_open
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.run import RolloutResult, not_serving, refusal_of
from vllm_rollout.rollout.traffic_shift import traffic_before


def gate_and_promote(
    tools: RunTools, *, plan_only: bool = False, wait_for_window: bool = False
) -> Evidence:
    """Gate the source, promote exactly what was gated, watch it, and roll back on a trigger.

    `wait_for_window` waits first, holding nothing, until production may be deployed to; but a
    rollout that a killed run left is finished or undone at once.
    """
    run, log = tools.run, tools.log
    if wait_for_window and run.serves_users and run.emergency is None:
        left = tools.releases.journal.read()
        if left is None or not left.unfinished:
            wait_until_open(
                run.policy,
                log.clock,
                log.reporter.progress,
                lambda why: log.notify(MessageKind.WAITING, why),
            )

    def work(started: datetime) -> RolloutResult:
        before = _refusal_to_plan(tools) if plan_only else _resume(tools)
        return before or _gate_then_promote(tools, started, plan_only=plan_only)

    done = None if plan_only else DecisionKind.PROMOTED
    return run_under_lease(run, log, tools.releases, work, done=done)


def _gate_then_promote(tools: RunTools, started: datetime, *, plan_only: bool) -> RolloutResult:
    run, log, observer, gates = tools.run, tools.log, tools.observer, tools.gates
    source, target, platform = run.source, run.target, tools.releases.platform
    for deployment in (source, target):
        ensure_history(platform, deployment)
    revision = _served(platform, run.policy, source)
    log.build = revision.build.digest
    values = platform.values(source, revision.number)
    if _runs(platform, target, revision.build):
        again = None if plan_only else ask_kept_again(tools)
        return again or _nothing_to_do(tools, revision, plan_only=plan_only)
    if end := before_gates(run, platform, log, revision):
        return end
    unmet_needs(run, platform, log, observer)
    tools.releases.ensure_not_paused()
    tools.releases.ensure_idle()
    # Refuses, before anything else, a ramp that could not begin.
    traffic_before(platform, run.policy, target)
    # First, so that what cannot be deployed is not put under load for nothing.
    before = gates.preflight(values)
    if before is not None and (refusal := refusal_of(before)):
        return refusal
    observer.reach(source)
    observer.sample_soak(source, revision)
    signed = reusable_run(run, platform, log, gates, revision)
    gated = signed or gates.run_gates(source)
    if refusal := refusal_of(gated):
        return refusal
    build = platform.build(target, values)
    if refusal := build_drift(platform, source, revision, gated, build):
        return refusal
    wait = still_to_wait_for(run, platform, log, revision, signed=signed is not None)
    if wait is not None and not plan_only:
        return wait
    promotion = Promotion(
        build=build,
        values=values,
        started=started,
        images=gated.images,
    )
    if plan_only:
        for line in describe(run, platform, promotion):
            log.log_step(f"would {line}")
        return wait or RolloutResult(
            code=ExitCode.OK, conclusion="All gates passed; --plan changed nothing"
        )
    # Again: hours may have passed since the gates.
    tools.releases.ensure_idle()
    if refusal := build_drift(platform, source, revision, gated, platform.build(target, values)):
        return refusal
    digest = log.store_evidence(platform.store, started)
    PassedRevisions(platform.store).passed(source, revision, digest)
    record_override(run, log, revision, digest)
    log.notify(DecisionKind.PROMOTION, f"build {build.short} passed its gates in {source}")
    log.append_audit(
        DecisionKind.PROMOTION,
        run.reason,
        who=who_of(run.again, run.who) if run.again else "",
        build=build.digest,
        evidence=digest,
    )
    end = _promote_or_undo(tools, promotion)
    promoted = newest_served(platform.history(target)) if end.code is ExitCode.OK else None
    if promoted is not None:
        observer.sample_soak(target, promoted)
    return end


def _promote_or_undo(tools: RunTools, promotion: Promotion) -> RolloutResult:
    """Promote; roll back where that cannot go on (gates crash, the disk is full, the network is
    cut), so that nothing half promoted is left to itself."""
    try:
        return promote(tools, promotion)
    except (LeaseLostError, ConflictError):
        raise  # another run is at work: what there is to undo is its business
    except RolloutError as error:
        entry = tools.releases.journal.last
        if entry is None or not entry.unfinished:
            raise
        if isinstance(error, ForeignChangeError):  # what is left to undo is the canary alone
            return roll_back(tools, entry, str(error), code=error.exit_code, unfinished=True)
        if end := refused(tools, entry, f"{error}. {error.remedy}".rstrip(), code=error.exit_code):
            return end
        why = f"the promotion could not go on: {error}"
        return roll_back(tools, entry, why, unfinished=True)


def _served(platform: ReleaseReader, policy: Policy, source: Deployment) -> Revision:
    """Return the source's newest revision, which must be whole and deployed."""
    history = platform.history(source)
    if not history:
        raise UsageError(
            f"{source.model} is not deployed in {source.environment}",
            remedy="Bring it there first: " + _first_command(policy, source),
        )
    newest = newest_served(history)
    if newest is None or not newest.complete:
        raise UsageError(
            f"{source} has no complete revision: its newest is {history[-1].status}, "
            f"{of_total(history[-1].replicas, history[-1].capacity, 'replica')}",
            remedy="Deploy it again, or finish the rollout that is under way there.",
        )
    return newest


def _first_command(policy: Policy, deployment: Deployment) -> str:
    """Return the command that brings a model to `deployment`; stages are not skipped."""
    if policy.previous(deployment.environment) is None:
        return next_command("vllm-rollout", "deploy", deployment.model, "--values", "FILE")
    return promote_command(deployment.model, deployment.environment)


def _go_on_from_its_evidence(tools: RunTools) -> None:
    """Let the evidence of this run grow from that by which the revision that serves passed."""
    log, platform, target = tools.log, tools.releases.platform, tools.run.target
    revision = newest_served(platform.history(target))
    passed = PassedRevisionsReader(platform.store)
    digest = passed.evidence_of(target, revision) if revision is not None else None
    if digest is None:
        return
    log.passed_revision, log.grown_from = revision, digest
    if why := unsigned(platform.store, tools.run.policy.evidence, target.model, digest):
        log.log_step(f"evidence {digest} is not gone on with", why)
        return
    try:
        log.gate_runs += stored_evidence(platform.store, target.model, digest).runs
    except UsageError as error:
        log.log_step(f"evidence {digest} is not gone on with", str(error))


def _runs(platform: ReleaseReader, target: Deployment, build: Build) -> bool:
    """Return whether every replica of the target runs `build`."""
    serving = newest_served(platform.history(target))
    return serving is not None and serving.complete and serving.build == build


def _nothing_to_do(tools: RunTools, revision: Revision, *, plan_only: bool) -> RolloutResult:
    """Verify a target that runs the build already: nothing to do, if it serves.

    What has died of it is brought back, where the platform does not do that by itself.
    """
    gates, target = tools.gates, tools.run.target
    same = f"{target} already runs build {revision.build.short}"
    run = gates.verify(target)
    if run.outcome is not Outcome.PASS and not plan_only and tools.releases.recover():
        run = gates.verify(target)
    if run.outcome is Outcome.PASS:
        return RolloutResult(code=ExitCode.OK, conclusion=f"Nothing to do: {same}, and it serves")
    why = "; ".join([not_serving(run), *without_router(gates.platform.replicas(target))])
    return RolloutResult(code=run.outcome.exit_code, conclusion=f"{same}, and {why}")


def _refusal_to_plan(tools: RunTools) -> RolloutResult | None:
    """Return the end of a plan where a run left a rollout unfinished, which a plan leaves alone."""
    entry = tools.releases.journal.read()
    if entry is None or not entry.unfinished:
        return None
    command = promote_command(entry.model, entry.target)
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE,
        conclusion=f"Run {entry.run_id} left a rollout to {entry.target} unfinished in its phase "
        f"{entry.phase}, and --plan changes nothing: this finishes or undoes it: {command}",
    )


def _resume(tools: RunTools) -> RolloutResult | None:
    """Finish or undo a rollout that a killed run left; a result if nothing else is to be done."""
    log, releases, target = tools.log, tools.releases, tools.run.target
    entry = releases.journal.read()
    if entry is None or not entry.unfinished:
        log.close_left()
        return None
    log.log_step(
        f"run {entry.run_id} was under way and did not finish",
        f"{entry.source} to {entry.target}, phase {entry.phase}: {entry.note}; begun by "
        f"{entry.holder} at {entry.started:%Y-%m-%d %H:%M:%S %Z}, last heard of at "
        f"{entry.updated:%Y-%m-%d %H:%M:%S %Z}",
    )
    if entry.target != target.environment:
        raise UsageError(
            f"run {entry.run_id} left a rollout to {entry.target} unfinished",
            remedy="Run this first, it finishes or undoes that one: "
            + promote_command(entry.model, entry.target),
        )
    entry = releases.take_over(entry)
    try:
        releases.ensure_left(entry)
    except ForeignChangeError as error:
        left = releases.journal.last
        if left is None or not left.unfinished:
            raise
        return roll_back(tools, left, str(error), code=error.exit_code)  # of the canary alone
    releases.recover()
    event = Event.RESUMED
    if entry.phase is Phase.WATCH and not _runs(releases.platform, target, entry.build):
        event = Event.REPLACED
    phase = next_phase(entry.phase, event)
    if phase is Phase.WATCH:
        _go_on_from_its_evidence(tools)
        log.announce_step(entry.note)
        return watch_to_the_end(tools, entry)
    if phase is Phase.DONE:
        note = f"{target} no longer runs build {entry.build.short}: changed by somebody else"
        log.log_step("nothing to watch any more", note)
        releases.close(entry, event, note)
        log.announce_end(note)
    else:
        stopped = f"stopped in the {entry.phase} phase"
        why = "rolled back, not verified" if entry.unverified else stopped
        end = roll_back(
            tools, entry, f"run {entry.run_id} {why}", unfinished=_only_unfinished(log.audit, entry)
        )
        left = releases.journal.last
        if left is not None and left.unfinished:  # not restored, or not verified again
            return end
        log.notify(DecisionKind.ROLLED_BACK, end.conclusion)
        log.append_audit(DecisionKind.ROLLED_BACK, end.conclusion, build=entry.build.digest)
    releases.under_way, log.rollout = False, ""
    return None


def _only_unfinished(audit: AuditLog, entry: JournalEntry) -> bool:
    """Return whether nothing speaks against the build but that its run was left unfinished."""
    if entry.phase is not Phase.ROLLBACK:
        return True
    decided = [
        each
        for each in audit.of(entry.model)
        if (each.kind, each.build) == (DecisionKind.ROLLBACK, entry.build.digest)
    ]
    return bool(decided) and decided[-1].unfinished


def manual_rollback(tools: RunTools, *, to: int | None, reason: str) -> Evidence:
    """Return the target to revision `to`, or to the newest good one before the serving one."""
    target, releases = tools.run.target, tools.releases
    passed = PassedRevisions(releases.platform.store)

    def work(_started: datetime) -> RolloutResult:
        left = releases.journal.read()
        if left is not None and not left.unfinished:
            left = None
        if left is not None:
            releases.take_over(left)
        else:
            tools.log.close_left()
        releases.recover()
        ensure_history(releases.platform, target)
        history = releases.platform.history(target)
        serving = newest_served(history)
        # A canary that has traffic is what is left, though the release has another build yet.
        leaving = left.build if left and left.traffic else serving.build if serving else None
        earlier = [r for r in history if r.build != leaving]
        good = passed.good_revision(target, earlier)
        number = to if to is not None else good.number if good else None
        if not history:
            raise UsageError(
                f"nothing is deployed as {target}", remedy="There is nothing to roll back."
            )
        if number is None or number not in {r.number for r in history}:
            raise UsageError(
                f"{target} has no revision {to}"
                if to is not None
                else f"{target} has no earlier revision with a build that was not rolled back",
                remedy="--to REVISION returns to any. They are listed by: "
                + release_command("history", target),
            )
        # A rollback that is taken up leaves the build that it left then.
        taken_up = left is not None and (left.traffic or left.phase is Phase.ROLLBACK)
        entry = releases.begin(
            left.build if left and taken_up else history[-1].build,
            before=number,
            note="manual rollback",
            traffic=left.traffic if left else None,
        )
        return roll_back(tools, entry, reason, code=ExitCode.OK)

    return run_under_lease(tools.run, tools.log, releases, work, done=DecisionKind.ROLLED_BACK)


def watch_rollback(tools: RunTools, *, reason: str, revision: int) -> Evidence:
    """Return the target from `revision`, over which a trigger fired, to the newest good one before.

    Nothing is done, and the end is OK, where a rollout is under way by now or another revision
    serves. A revision that a rollback restored is not left again by a trigger: going from revision
    to revision would not help, a person may.
    """
    target, releases = tools.run.target, tools.releases
    passed = PassedRevisions(releases.platform.store)

    def work(_started: datetime) -> RolloutResult:
        last = releases.journal.read()
        if last is not None and last.in_progress:
            return RolloutResult(
                code=ExitCode.OK, conclusion=f"Nothing done: {last.run_id} is under way"
            )
        tools.log.close_left()
        history = releases.platform.history(target)
        serving = newest_served(history)
        if serving is None or serving.number != revision:
            return RolloutResult(
                code=ExitCode.OK, conclusion=f"Nothing done: revision {revision} is gone"
            )
        tools.log.build = serving.build.digest
        earlier = [r for r in history if r.number < revision and r.build != serving.build]
        good = passed.good_revision(target, earlier)
        brought_back = _brought_back(tools.log.audit, target, history, serving, last)
        if good is None or brought_back:
            why = "it was brought back itself" if brought_back else "no earlier revision is good"
            return RolloutResult(
                code=ExitCode.NEEDS_PERSON,
                conclusion=f"A person is needed: {target}, revision {revision}: {reason}; it is "
                f"not rolled back, as {why}",
            )
        entry = releases.begin(
            serving.build,
            before=good.number,
            note=f"watch: {reason}",
            traffic=last.traffic if last and last.unfinished else None,
        )
        return roll_back(tools, entry, reason)

    done = DecisionKind.ROLLED_BACK
    return run_under_lease(tools.run, tools.log, releases, work, done=done, repeated=True)


def _brought_back(
    audit: AuditLog,
    target: Deployment,
    history: Sequence[Revision],
    serving: Revision,
    last: JournalEntry | None,
) -> bool:
    """Return whether a rollback brought what serves, and no promotion or manual change."""
    if last is not None and last.target == target.environment:
        restored = [r.build for r in history if r.number == last.before] or [serving.build]
        return last.build != serving.build and serving.build in restored
    about = [d for d in audit.of(target.model) if d.environment == target.environment]
    return any(
        each.kind is DecisionKind.ROLLED_BACK and serving.created <= each.at for each in about[-1:]
    )
