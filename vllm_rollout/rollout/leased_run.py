"""Puts one run's collaborators together, works under the model's lease and stores how it ended."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from tenacity import RetryCallState

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import AccessError, ExitCode, RolloutError
from vllm_rollout.model.evidence import Evidence, GateRun
from vllm_rollout.model.units import format_share, of_total
from vllm_rollout.platform.progress import progress_shown
from vllm_rollout.platform.writer import Store, writer_of
from vllm_rollout.policy.notifications import ENDINGS, MessageKind
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.blindness import Blindness
from vllm_rollout.rollout.evidence_store import PassedRevisions, store_evidence
from vllm_rollout.rollout.gates import GateRunner, Gates
from vllm_rollout.rollout.journal import Journal
from vllm_rollout.rollout.lease import TTL
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.preconditions import ask_for_sign_off, notify_of_end
from vllm_rollout.rollout.run import Clock, Reporter, RolloutResult, Run, RunLog, while_unreachable
from vllm_rollout.rollout.verification import verify
from vllm_rollout.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTools:
    """One run and its four collaborators.

    Only the functions that conduct a whole rollout take it; all others take the parts they need.
    """

    run: Run
    log: RunLog
    releases: LeasedReleases
    observer: DeploymentObserver
    gates: Gates


def assemble(
    run: Run,
    settings: Settings,
    *,
    clock: Clock,
    reporter: Reporter,
    runner: GateRunner,
    verifier: Callable[[Deployment], GateRun] | None = None,
    notify: Callable[..., None] = lambda *_, **__: None,
    undelivered: Callable[..., list[str]] = lambda **_: [],
    announce: Callable[..., None] = lambda *_, **__: None,
    close_left: Callable[[], None] = lambda: None,
    lease_ttl: timedelta = TTL,
) -> RunTools:
    """Return the collaborators of `run` on the platform of `settings`.

    `notify` is `RunLog.send`, `undelivered`, `announce` and `close_left` as there; `verifier` is
    `verify` by default.
    """
    settings = settings.at_home(run.target.environment)
    platform = writer_of(settings.reader())
    log = RunLog(
        run=run,
        clock=clock,
        reporter=reporter,
        audit=AuditLog(platform.store),
        send=notify,
        undelivered=undelivered,
        announce=announce,
        close_left=close_left,
    )
    observer = DeploymentObserver(run=run, settings=settings, log=log, blindness=Blindness(log))
    return RunTools(
        run=run,
        log=log,
        releases=LeasedReleases(
            run=run,
            platform=platform,
            journal=Journal(platform.store, run.target.model),
            log=log,
            lease_ttl=lease_ttl,
        ),
        observer=observer,
        gates=Gates(
            run=run,
            platform=platform,
            runner=runner,
            verifier=verifier or (lambda deployment: verify(settings, deployment, clock)),
            settings_for=observer.settings_for,
            log=log,
        ),
    )


_SAID = ENDINGS | {MessageKind.ROLLBACK_FAILED}
"""Messages that say how a run ended; after a failed rollback a status page stays open."""
_PAUSE = timedelta(seconds=5)
_TRIES = 6


def run_under_lease(
    run: Run,
    log: RunLog,
    releases: LeasedReleases,
    work: Callable[[datetime], RolloutResult],
    *,
    done: DecisionKind | None,
    repeated: bool = False,
) -> Evidence:
    """Do `work` under the model's lease; every expected error, and Ctrl-C, ends in evidence.

    `done` is the decision when `work` changed the target and ended well; None where nothing is
    decided. Messages under way are waited for last: the evidence is kept by then, and the lease
    given up. A `repeated` work that changed nothing is tried again: it says nothing and waits for
    nothing.
    """
    started = log.now()
    store = releases.platform.store

    def tried_again(code: int | None) -> bool:
        over = releases.touched or code in (ExitCode.OK, ExitCode.NEEDS_PERSON)
        return repeated and not over

    def kept(result: RolloutResult, kind: DecisionKind | None, *, leased: bool = True) -> Evidence:
        log.log_result(result)
        if kind is not None:
            notify_of_end(log, kind, result)
        # A run without the lease has opened nothing: what is open is of the one that has it.
        said = kind is not None and MessageKind(kind) in _SAID
        if done is not None and leased and not said and not tried_again(result.code):
            log.announce_end(result.conclusion)
        log.log_undelivered(wait=False)
        evidence = log.evidence(started, result)
        persist_evidence(store, log, evidence, kind)
        if result.awaits_sign_off:
            ask_for_sign_off(run, releases.platform, log, evidence, notify=kind is not None)
        return evidence

    try:
        with releases.leased(), progress_shown(log.reporter.progress):
            result = _result_of(releases, lambda: work(started))
            kind = kind_of_end(result.code, under_way=releases.under_way, done=done)
            kind = None if tried_again(result.code) else kind
            evidence = kept(result, result.decision or kind)
    except (RolloutError, KeyboardInterrupt) as error:  # another has the lease: nothing is decided
        evidence = kept(_result_of_error(releases, error), None, leased=False)
    with suppress(KeyboardInterrupt):  # ends the waiting, and nothing else
        log.log_undelivered(wait=not tried_again(evidence.exit_code))
    return evidence


def state_when_interrupted(releases: LeasedReleases) -> str:
    """Return the state that an interrupted rollout leaves, and what to do next: its last line."""
    target, platform = releases.run.target, releases.platform
    try:
        history = platform.history(target)
        entry = releases.journal.read()
        traffic = entry is not None and entry.moves_traffic
        share = platform.weights(target).canary_share if traffic else 0.0
    except RolloutError as error:
        return f"Interrupted; the state of {target} could not be read: {error}"
    if entry is None or not entry.unfinished:
        return f"Interrupted; {target} was not changed"
    newest = history[-1] if history else None
    state = (
        f"revision {newest.number}, {of_total(newest.replicas, newest.capacity, 'replica')} on "
        f"build {newest.build.short} ({newest.status})"
        if newest
        else "not deployed"
    )
    if traffic:
        state += f", {format_share(share)} of the traffic goes to its canary"
    return (
        f"Interrupted in the {entry.phase} phase; {target}: {state}. To finish or "
        f"undo this rollout: {releases.run.command}"
    )


def kind_of_end(
    code: ExitCode, *, under_way: bool, done: DecisionKind | None
) -> DecisionKind | None:
    """Return the audit log's kind for the end of a run; None where nothing was decided.

    `under_way` is whether the target was being changed; `done` the kind for a run that ended well,
    None for one that was not to decide anything.
    """
    if done is None:
        return None
    if code is ExitCode.NEEDS_PERSON:
        return DecisionKind.ROLLBACK_FAILED
    if not under_way:
        refusals = (ExitCode.GATE_FAILED, ExitCode.INCONCLUSIVE, ExitCode.UNREACHABLE)
        return DecisionKind.REFUSAL if code in refusals else None
    if code is ExitCode.OK:
        return done
    # A first step that never gets ready is undone, and ends as a gate that failed.
    undone = (ExitCode.ROLLED_BACK, ExitCode.GATE_FAILED)
    return DecisionKind.ROLLED_BACK if code in undone else DecisionKind.LEFT


def persist_evidence(
    store: Store, log: RunLog, evidence: Evidence, kind: DecisionKind | None
) -> None:
    """Keep the evidence in the store, and append the end of the run to the audit log.

    A store that is out of reach is asked again for a while, one that refuses us is not. It raises
    nothing: what was done is done, the report folder has the evidence too, and the journal knows
    where the rollout stands.
    """

    def keep() -> None:
        digest = store_evidence(store, evidence, log.key())
        if kind is None:
            return
        if log.passed_revision is not None:
            PassedRevisions(store).conclude(log.run.target, log.passed_revision, digest)
        build = _build(evidence)
        log.append_audit(kind, evidence.conclusion, build=build, evidence=digest)

    try:
        while_unreachable(
            keep,
            clock=log.clock,
            pause=_PAUSE,
            stop=_is_no_use,
            waits=lambda error: log.reporter.progress(f"the evidence cannot be kept yet: {error}"),
        )
    except RolloutError as error:
        log.log_step("the evidence is only in the report folder", str(error))


def _is_no_use(state: RetryCallState) -> bool:
    refused = state.outcome is not None and isinstance(state.outcome.exception(), AccessError)
    return refused or state.attempt_number >= _TRIES


def _result_of(releases: LeasedReleases, work: Callable[[], RolloutResult]) -> RolloutResult:
    try:
        return work()
    except (RolloutError, KeyboardInterrupt) as error:
        return _result_of_error(releases, error)


def _result_of_error(
    releases: LeasedReleases, error: RolloutError | KeyboardInterrupt
) -> RolloutResult:
    if isinstance(error, KeyboardInterrupt):
        state = state_when_interrupted(releases)
        conclusion = f"{error}. {state}" if str(error) else state
        return RolloutResult(code=ExitCode.INTERRUPTED, conclusion=conclusion)
    return RolloutResult(code=error.exit_code, conclusion=f"{error}. {error.remedy}".rstrip())


def _build(evidence: Evidence) -> str:
    """Return the digest of the build of the last gates."""
    builds = [run.build.digest for run in evidence.runs if run.build]
    return builds[-1] if builds else ""
