"""The rollout, from the first question to the last: finish what was under way, gate, promote."""

from collections.abc import Callable, Sequence
from datetime import datetime

from vllm_rollout import __version__
from vllm_rollout.deployment import Build, Revision, newest_served
from vllm_rollout.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.judge import Outcome
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.release import conditions
from vllm_rollout.release.context import Context, End, refusal_of, trouble_of
from vllm_rollout.release.decisions import DecisionKind
from vllm_rollout.release.identity import not_what_was_gated
from vllm_rollout.release.journal import JournalEntry, Phase
from vllm_rollout.release.keeping import keep_evidence, kind_of_end
from vllm_rollout.release.lock import LeaseLostError, hold
from vllm_rollout.release.promotion import Promotion, describe, promote, watch_to_the_end
from vllm_rollout.release.rollback import roll_back
from vllm_rollout.release.traffic import traffic_before
from vllm_rollout.release.waiting import wait_until_open
from vllm_rollout.report.evidence import Evidence
from vllm_rollout.units import format_share


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

    def work(started: datetime) -> End:
        return _finish_what_was_under_way(context) or _gate_then_promote(
            context, started, plan_only=plan_only
        )

    return _conduct(context, work, done=None if plan_only else DecisionKind.PROMOTED)


def roll_back_by_hand(context: Context, *, to: int | None, reason: str) -> Evidence:
    """Return the target to revision `to`, or to the newest good one before what serves now."""

    def work(_started: datetime) -> End:
        target = context.target
        left = context.journal.read()
        if left is not None and not left.unfinished:
            left = None
        if left is not None:
            context.take_over(left)
        context.recover()
        history = context.platform.history(target)
        serving = newest_served(history)
        # A canary that has traffic is what is left, though the release has another build yet.
        leaving = left.build if left and left.traffic else serving.build if serving else None
        earlier = [r for r in history if r.build != leaving]
        good = context.ledger.good_revision(target, earlier)
        number = to if to is not None else good.number if good else None
        if number is None or number not in {r.number for r in history}:
            raise UsageError(
                f"{target} has no revision {to}"
                if to
                else f"{target} has no earlier good revision",
                remedy=f"vllm-rollout history {target.model} -e {target.environment} lists them.",
            )
        entry = context.begin(
            left.build if left and left.traffic else history[-1].build,
            before=number,
            note="rollback by hand",
            traffic=left.traffic if left else None,
        )
        return roll_back(context, entry, reason, code=ExitCode.OK)

    return _conduct(context, work, done=DecisionKind.ROLLED_BACK)


def roll_back_watched(context: Context, *, reason: str, revision: int) -> Evidence:
    """Return the target from `revision`, over which a trigger fired, to the newest good one before.

    Nothing is done, and the end is OK, where a rollout is under way by now or another revision
    serves. What a rollback has brought back is not left again by a trigger: going from revision to
    revision would not help, a person may.
    """

    def work(_started: datetime) -> End:
        target = context.target
        last = context.journal.read()
        if last is not None and last.unfinished:
            return End(code=ExitCode.OK, conclusion=f"Nothing done: {last.run_id} is under way")
        history = context.platform.history(target)
        serving = newest_served(history)
        if serving is None or serving.number != revision:
            return End(code=ExitCode.OK, conclusion=f"Nothing done: revision {revision} is gone")
        earlier = [r for r in history if r.number < revision and r.build != serving.build]
        good = context.ledger.good_revision(target, earlier)
        if good is None or _brought_back(context, history, serving, last):
            why = "it was brought back itself" if good else "no earlier revision is good"
            return End(
                code=ExitCode.NEEDS_PERSON,
                conclusion=f"A person is needed: {target}, revision {revision}: {reason}; it is "
                f"not rolled back, as {why}",
            )
        entry = context.begin(serving.build, before=good.number, note=f"watch: {reason}")
        return roll_back(context, entry, reason)

    return _conduct(context, work, done=DecisionKind.ROLLED_BACK)


def _brought_back(
    context: Context, history: Sequence[Revision], serving: Revision, last: JournalEntry | None
) -> bool:
    """Whether a rollback, and neither a promotion nor other hands, brought what serves."""
    target = context.target
    if last is not None and last.target == target.environment:
        restored = [r.build for r in history if r.number == last.before] or [serving.build]
        return last.build != serving.build and serving.build in restored
    about = [d for d in context.decisions.of(target.model) if d.environment == target.environment]
    return any(
        each.kind is DecisionKind.ROLLED_BACK and serving.created <= each.at for each in about[-1:]
    )


def _conduct(
    context: Context, work: Callable[[datetime], End], *, done: DecisionKind | None
) -> Evidence:
    """Do `work` under the model's lease; every expected trouble, and Ctrl-C, ends in evidence.

    `done` is what has happened when `work` changed the target and ended well; None where nothing
    is decided.
    """
    started = context.clock.now()

    def kept(end: End, kind: DecisionKind | None) -> Evidence:
        context.say(f"exit {end.code.value}", end.conclusion)
        if kind is not None:
            conditions.tell_the_end(context, kind, end.conclusion)
        for line in context.undelivered():
            context.say("a message did not arrive", line, Outcome.INCONCLUSIVE)
        evidence = _evidence(context, started, end)
        keep_evidence(context, evidence, kind, end)
        conditions.ask_for_sign_off(context, evidence, tell=kind is not None)
        return evidence

    try:
        with hold(
            context.platform.store,
            context.target.model,
            clock=context.clock,
            on_wait=lambda text: context.say("waiting for the lease", text),
            ttl=context.lease_ttl,
        ) as held:
            context.held = held
            context.platform.guard(held)
            end = _ended(context, lambda: work(started))
            return kept(end, kind_of_end(end.code, under_way=context.under_way, done=done))
    except (RolloutError, KeyboardInterrupt) as error:  # another has the lease: nothing is decided
        return kept(_end_of(context, error), None)


def _ended(context: Context, work: Callable[[], End]) -> End:
    try:
        return work()
    except (RolloutError, KeyboardInterrupt) as error:
        return _end_of(context, error)


def _end_of(context: Context, error: RolloutError | KeyboardInterrupt) -> End:
    if isinstance(error, KeyboardInterrupt):
        return End(code=ExitCode.INTERRUPTED, conclusion=state_when_interrupted(context))
    return End(code=error.exit_code, conclusion=f"{error}. {error.remedy}".rstrip())


def _gate_then_promote(context: Context, started: datetime, *, plan_only: bool) -> End:
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
    context.reach(source)
    conditions.note_health(context, source, revision)
    run = conditions.reusable_run(context, revision) or context.gate(source, source.environment)
    if refusal := refusal_of(run):
        return refusal
    build = platform.build(target, values)
    if refusal := not_what_was_gated(context, revision, run, build):
        return refusal
    wait = conditions.still_to_wait_for(context, revision)
    if wait is not None and not plan_only:
        return wait
    gated = _evidence(context, started, None)
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
        return wait or End(code=ExitCode.OK, conclusion="All gates passed; --plan changed nothing")
    # Again: hours may have passed since the gates.
    if refusal := not_what_was_gated(context, revision, run, platform.build(target, values)):
        return refusal
    digest = context.ledger.keep(gated)
    context.ledger.passed(source, revision, digest)
    conditions.record_override(context, revision, digest)
    context.decide(DecisionKind.PROMOTION, context.reason, build=build.digest, evidence=digest)
    end = _promote_or_undo(context, promotion)
    conditions.begin_soak(context, end)
    return end


def _promote_or_undo(context: Context, promotion: Promotion) -> End:
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


def _nothing_to_do(context: Context, revision: Revision) -> End:
    """The target runs the build already: an idempotent end, if it serves."""
    told = f"{context.target} already runs build {revision.build.short}"
    run = context.verify(context.target)
    if run.outcome is Outcome.PASS:
        return End(code=ExitCode.OK, conclusion=f"Nothing to do: {told}, and it serves")
    code = ExitCode.GATE_FAILED if run.outcome is Outcome.FAIL else ExitCode.INCONCLUSIVE
    return End(code=code, conclusion=f"{told}, and it does not serve: {trouble_of(run)}")


def _finish_what_was_under_way(context: Context) -> End | None:
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
    end = roll_back(context, entry, f"run {entry.run_id} stopped in the {entry.phase} phase")
    if end.code is ExitCode.NEEDS_PERSON:
        return end
    context.under_way = False
    return None


def state_when_interrupted(context: Context) -> str:
    """What an interrupted rollout leaves behind, and what to do next: its last line."""
    try:
        history = context.platform.history(context.target)
        entry = context.journal.read()
        traffic = entry is not None and entry.unfinished and entry.traffic is not None
        share = context.platform.weights(context.target).canary_share if traffic else 0.0
    except RolloutError as error:
        return f"Interrupted; the state of {context.target} could not be read: {error}"
    if entry is None or not entry.unfinished:
        return f"Interrupted; {context.target} was not changed"
    newest = history[-1] if history else None
    state = (
        f"revision {newest.number}, {newest.replicas} of {newest.capacity} replicas on build "
        f"{newest.build.short} ({newest.status})"
        if newest
        else "not deployed"
    )
    if traffic:
        state += f", {format_share(share)} of the traffic goes to its canary"
    return (
        f"Interrupted in the {entry.phase} phase; {context.target}: {state}. Run gate-and-promote "
        "again: it finishes or undoes this rollout"
    )


def _evidence(context: Context, started: datetime, end: End | None) -> Evidence:
    return Evidence(
        run_id=context.run_id,
        model=context.source.model,
        suite_version=__version__,
        started=started,
        finished=context.clock.now(),
        runs=tuple(context.runs),
        steps=tuple(context.steps),
        conclusion=end.conclusion if end else "",
        exit_code=int(end.code) if end else None,
        override=conditions.override_of(context),
    )
