"""How every change of a release is conducted: under the model's lease, and it ends in evidence."""

from collections.abc import Callable
from datetime import datetime

from vllm_rollout import __version__
from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.units import format_share
from vllm_rollout.rollout import preconditions as conditions
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.evidence_store import kind_of_end, persist_evidence
from vllm_rollout.rollout.lease import hold
from vllm_rollout.rollout.result import RolloutResult


def run_under_lease(
    context: Context, work: Callable[[datetime], RolloutResult], *, done: DecisionKind | None
) -> Evidence:
    """Do `work` under the model's lease; every expected trouble, and Ctrl-C, ends in evidence.

    `done` is what has happened when `work` changed the target and ended well; None where nothing
    is decided.
    """
    started = context.clock.now()

    def kept(end: RolloutResult, kind: DecisionKind | None) -> Evidence:
        context.say(f"exit {end.code.value}", end.conclusion)
        if kind is not None:
            conditions.tell_the_end(context, kind, end.conclusion)
        for line in context.undelivered():
            context.say("a message did not arrive", line, Outcome.INCONCLUSIVE)
        evidence = evidence_of_run(context, started, end)
        persist_evidence(context, evidence, kind, end)
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


def _ended(context: Context, work: Callable[[], RolloutResult]) -> RolloutResult:
    try:
        return work()
    except (RolloutError, KeyboardInterrupt) as error:
        return _end_of(context, error)


def _end_of(context: Context, error: RolloutError | KeyboardInterrupt) -> RolloutResult:
    if isinstance(error, KeyboardInterrupt):
        return RolloutResult(code=ExitCode.INTERRUPTED, conclusion=state_when_interrupted(context))
    return RolloutResult(code=error.exit_code, conclusion=f"{error}. {error.remedy}".rstrip())


def state_when_interrupted(context: Context) -> str:
    """What an interrupted rollout leaves behind, and what to do next: its last line."""
    try:
        history = context.platform.history(context.target)
        entry = context.journal.read()
        traffic = entry is not None and entry.moves_traffic
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


def evidence_of_run(context: Context, started: datetime, end: RolloutResult | None) -> Evidence:
    """What is known of this run by now; `end` is None until it has ended."""
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
