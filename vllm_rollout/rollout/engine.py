"""One rollout from start to end: finish an unfinished one, gate, promote."""

from datetime import datetime

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.build_drift import build_drift
from vllm_rollout.rollout.gates import Gates
from vllm_rollout.rollout.journal import Event, Phase, next_phase
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.leased_run import run_under_lease
from vllm_rollout.rollout.passed_revisions import PassedRevisions
from vllm_rollout.rollout.preconditions import (
    before_gates,
    record_override,
    reusable_run,
    still_to_wait_for,
)
from vllm_rollout.rollout.promotion import Promotion, describe, promote, watch_to_the_end
from vllm_rollout.rollout.promotion_blockers import wait_until_open
from vllm_rollout.rollout.result import RolloutResult, problems_of, refusal_of
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.tools import RunTools
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
                run.policy.windows,
                log.clock,
                log.reporter.progress,
                lambda why: log.notify(MessageKind.WAITING, why),
            )

    def work(started: datetime) -> RolloutResult:
        return _resume(tools) or _gate_then_promote(tools, started, plan_only=plan_only)

    done = None if plan_only else DecisionKind.PROMOTED
    return run_under_lease(run, log, tools.releases, work, done=done)


def _gate_then_promote(tools: RunTools, started: datetime, *, plan_only: bool) -> RolloutResult:
    run, log, observer, gates = tools.run, tools.log, tools.observer, tools.gates
    source, target, platform = run.source, run.target, tools.releases.platform
    revision = _served(platform, source)
    values = platform.values(source, revision.number)
    if _runs(platform, target, revision.build):
        return _nothing_to_do(gates, target, revision)
    if end := before_gates(run, platform, log, revision):
        return end
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
    evidence = log.evidence(started, None)
    promotion = Promotion(
        build=build,
        values=values,
        source_revision=revision.number,
        evidence=evidence,
        images=gated.images,
    )
    if plan_only:
        for line in describe(run, platform, promotion):
            log.log_step(f"would {line}")
        return wait or RolloutResult(
            code=ExitCode.OK, conclusion="All gates passed; --plan changed nothing"
        )
    # Again: hours may have passed since the gates.
    if refusal := build_drift(platform, source, revision, gated, platform.build(target, values)):
        return refusal
    passed = PassedRevisions(platform.store)
    digest = passed.keep(evidence)
    passed.passed(source, revision, digest)
    record_override(run, log, revision, digest)
    log.notify(DecisionKind.PROMOTION, run.reason)
    log.append_audit(DecisionKind.PROMOTION, run.reason, build=build.digest, evidence=digest)
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
        return roll_back(tools, entry, f"the promotion could not go on: {error}")


def _served(platform: ReleaseReader, source: Deployment) -> Revision:
    """Return the source's newest revision, which must be whole and deployed."""
    history = platform.history(source)
    if not history:
        raise UsageError(
            f"{source.model} is not deployed in {source.environment}",
            remedy=f"Deploy it first: vllm-rollout deploy {source.model} "
            f"--environment {source.environment} --values FILE",
        )
    newest = newest_served(history)
    if newest is None or not newest.complete:
        raise UsageError(
            f"{source} has no complete revision: its newest is {history[-1].status}, "
            f"{history[-1].replicas} of {history[-1].capacity} replicas",
            remedy="Deploy it again, or finish the rollout that is under way there.",
        )
    return newest


def _runs(platform: ReleaseReader, target: Deployment, build: Build) -> bool:
    """Return whether every replica of the target runs `build`."""
    serving = newest_served(platform.history(target))
    return serving is not None and serving.complete and serving.build == build


def _nothing_to_do(gates: Gates, target: Deployment, revision: Revision) -> RolloutResult:
    """Verify a target that runs the build already: nothing to do, if it serves."""
    same = f"{target} already runs build {revision.build.short}"
    run = gates.verify(target)
    if run.outcome is Outcome.PASS:
        return RolloutResult(code=ExitCode.OK, conclusion=f"Nothing to do: {same}, and it serves")
    code = ExitCode.GATE_FAILED if run.outcome is Outcome.FAIL else ExitCode.INCONCLUSIVE
    return RolloutResult(code=code, conclusion=f"{same}, and it does not serve: {problems_of(run)}")


def _resume(tools: RunTools) -> RolloutResult | None:
    """Finish or undo a rollout that a killed run left; a result if nothing else is to be done."""
    log, releases, target = tools.log, tools.releases, tools.run.target
    entry = releases.journal.read()
    if entry is None or not entry.unfinished:
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
            remedy=f"Run gate-and-promote {entry.model} --to {entry.target} first: it finishes or "
            "undoes that one.",
        )
    entry = releases.take_over(entry)
    releases.recover()
    event = Event.RESUMED
    if entry.phase is Phase.WATCH and not _runs(releases.platform, target, entry.build):
        event = Event.REPLACED
    phase = next_phase(entry.phase, event)
    if phase is Phase.WATCH:
        return watch_to_the_end(tools, entry)
    if phase is Phase.DONE:
        note = f"{target} no longer runs build {entry.build.short}: changed by somebody else"
        log.log_step("nothing to watch any more", note)
        releases.close(entry, event, note)
    else:
        stopped = f"stopped in the {entry.phase} phase"
        why = "rolled back, not verified" if entry.unverified else stopped
        end = roll_back(tools, entry, f"run {entry.run_id} {why}")
        left = releases.journal.last
        if left is not None and left.unfinished:  # not restored, or not verified again
            return end
    releases.under_way = False
    return None
