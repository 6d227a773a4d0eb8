"""The rollout, from the first question to the last: finish what was under way, gate, promote."""

from datetime import datetime

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Revision, newest_served
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout import preconditions as conditions
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.build_drift import build_drift
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import Phase
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.promotion import Promotion, describe, promote, watch_to_the_end
from vllm_rollout.rollout.promotion_blockers import wait_until_open
from vllm_rollout.rollout.result import RolloutResult, problems_of, refusal_of
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.run import evidence_of_run, run_under_lease
from vllm_rollout.rollout.traffic_shift import traffic_before


def gate_and_promote(
    context: Context, *, plan_only: bool = False, wait_for_window: bool = False
) -> Evidence:
    """Gate the source, promote exactly what was gated, watch it, and roll back on a trigger.

    `wait_for_window` waits first, holding nothing, until production may be deployed to; but what
    a killed run left is finished or undone at once.
    """
    if wait_for_window and context.serves_users and context.emergency is None:
        left = context.journal.read()
        if left is None or not left.unfinished:
            wait_until_open(
                context.policy.windows,
                context.clock,
                context.reporter.progress,
                lambda why: context.notify(MessageKind.WAITING, why),
            )

    def work(started: datetime) -> RolloutResult:
        return _finish_what_was_under_way(context) or _gate_then_promote(
            context, started, plan_only=plan_only
        )

    return run_under_lease(context, work, done=None if plan_only else DecisionKind.PROMOTED)


def _gate_then_promote(context: Context, started: datetime, *, plan_only: bool) -> RolloutResult:
    source, target, platform = context.source, context.target, context.platform
    revision = _served(context)
    values = platform.values(source, revision.number)
    if _runs(context, revision.build):
        return _nothing_to_do(context, revision)
    if end := conditions.before_gates(context, revision):
        return end
    traffic_before(context)  # refuses, before anything else, a ramp that could not begin
    # First, so that what cannot be deployed is not put under load for nothing.
    before = context.preflight(values)
    if before is not None and (refusal := refusal_of(before)):
        return refusal
    context.looks.reach(source)
    conditions.note_health(context, source, revision)
    run = conditions.reusable_run(context, revision) or context.gate(source, source.environment)
    if refusal := refusal_of(run):
        return refusal
    build = platform.build(target, values)
    if refusal := build_drift(context, revision, run, build):
        return refusal
    wait = conditions.still_to_wait_for(context, revision)
    if wait is not None and not plan_only:
        return wait
    gated = evidence_of_run(context, started, None)
    promotion = Promotion(
        build=build,
        values=values,
        source_revision=revision.number,
        evidence=gated,
        images=run.images,
    )
    if plan_only:
        for line in describe(context, promotion):
            context.say(f"would {line}")
        return wait or RolloutResult(
            code=ExitCode.OK, conclusion="All gates passed; --plan changed nothing"
        )
    # Again: hours may have passed since the gates.
    if refusal := build_drift(context, revision, run, platform.build(target, values)):
        return refusal
    digest = context.ledger.keep(gated)
    context.ledger.passed(source, revision, digest)
    conditions.record_override(context, revision, digest)
    context.decide(DecisionKind.PROMOTION, context.reason, build=build.digest, evidence=digest)
    end = _promote_or_undo(context, promotion)
    conditions.begin_soak(context, end)
    return end


def _promote_or_undo(context: Context, promotion: Promotion) -> RolloutResult:
    """Promote; where that cannot go on (the gates crash, the disk is full, the network is cut), go
    back: nothing half promoted is left to itself."""
    try:
        return promote(context, promotion)
    except (LeaseLostError, ConflictError):
        raise  # another run is at work: what there is to undo is its business
    except RolloutError as error:
        entry = context.journal.last
        if entry is None or not entry.unfinished:
            raise
        return roll_back(context, entry, f"the promotion could not go on: {error}")


def _served(context: Context) -> Revision:
    """The source's newest revision, which must be whole and deployed."""
    source = context.source
    history = context.platform.history(source)
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


def _runs(context: Context, build: Build) -> bool:
    """Whether every replica of the target runs `build`."""
    history = context.platform.history(context.target)
    serving = newest_served(history)
    return serving is not None and serving.complete and serving.build == build


def _nothing_to_do(context: Context, revision: Revision) -> RolloutResult:
    """The target runs the build already: an idempotent end, if it serves."""
    told = f"{context.target} already runs build {revision.build.short}"
    run = context.verify(context.target)
    if run.outcome is Outcome.PASS:
        return RolloutResult(code=ExitCode.OK, conclusion=f"Nothing to do: {told}, and it serves")
    code = ExitCode.GATE_FAILED if run.outcome is Outcome.FAIL else ExitCode.INCONCLUSIVE
    return RolloutResult(code=code, conclusion=f"{told}, and it does not serve: {problems_of(run)}")


def _finish_what_was_under_way(context: Context) -> RolloutResult | None:
    """Undo or finish what a killed run left behind; an end if that was all there is to do."""
    entry = context.journal.read()
    if entry is None or not entry.unfinished:
        return None
    context.say(
        f"run {entry.run_id} was under way and did not finish",
        f"{entry.source} to {entry.target}, phase {entry.phase}: {entry.note}; begun by "
        f"{entry.holder} at {entry.started:%Y-%m-%d %H:%M:%S %Z}, last heard of at "
        f"{entry.updated:%Y-%m-%d %H:%M:%S %Z}",
    )
    if entry.target != context.target.environment:
        raise UsageError(
            f"run {entry.run_id} left a rollout to {entry.target} unfinished",
            remedy=f"Run gate-and-promote {entry.model} --to {entry.target} first: it finishes or "
            "undoes that one.",
        )
    entry = context.take_over(entry)
    context.recover()
    if entry.phase is Phase.WATCH:
        if _runs(context, entry.build):
            return watch_to_the_end(context, entry)
        note = f"{context.target} no longer runs build {entry.build.short}: changed by other hands"
        context.say("nothing to watch any more", note)
        context.journal.advance(entry, Phase.DONE, note, now=context.clock.now())
        context.under_way = False
        return None
    why = "rolled back, not verified" if entry.unverified else f"stopped in the {entry.phase} phase"
    end = roll_back(context, entry, f"run {entry.run_id} {why}")
    left = context.journal.last
    if left is not None and left.unfinished:  # not restored, or not verified again
        return end
    context.under_way = False
    return None
