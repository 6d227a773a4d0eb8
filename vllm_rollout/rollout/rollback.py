"""Rollback: back to the state before, verified, and loud when it does not work.

Nothing that serves is taken away for it: both platforms bring the old build up first, and where it
does not come up they leave what there is. A rollback that fails is tried once more, to the next
older revision with passing evidence; then a person is called.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode, RolloutError, UnreachableError
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import JournalEntry, Phase
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.result import RolloutResult, problems_of
from vllm_rollout.rollout.traffic_shift import give_back, remove_canary
from vllm_rollout.rollout.verification import CannotVerifyError

_T = TypeVar("_T")


class _NotRestoredError(Exception):
    """The target does not serve as it did. `surely` is whether that is known or only not shown."""

    def __init__(self, trouble: str, *, surely: bool) -> None:
        super().__init__(trouble)
        self.surely = surely


def roll_back(
    context: Context, entry: JournalEntry, reason: str, *, code: ExitCode = ExitCode.ROLLED_BACK
) -> RolloutResult:
    """Return the target to the revision `entry.before` and verify that it serves.

    Where nothing served before, the release is removed: that is the state before. The journal is
    closed only when the end was verified, so that the next run takes up a rollback that failed.

    Where the change went well and the verification itself did not work, nothing is known against
    what serves: the end is ROLLED_BACK, "not verified". The journal stays open then, so that the
    next run verifies before it promotes anything, and a canary stays until that, as its replicas
    may be needed. The watch does not wait for it: see `JournalEntry.unverified`.

    Returns:
        `code`, or ROLLED_BACK when it could not be verified, or NEEDS_PERSON when service was not
        restored.

    Raises:
        LeaseLostError: another run may have taken over; nothing more is changed.
        UnreachableError: the store did not answer for as long as a deployment may take.
    """
    context.touched = True
    started = context.clock.monotonic()
    tried: list[str] = []
    back_to: int | None = entry.before
    while True:
        entry = replace(entry, before=back_to, unverified=False)
        try:
            times, unverified = _return(context, entry, reason)
        except _NotRestoredError as error:
            tried.append(f"{_named(entry)}: {error}")
            older = _older(context, entry) if error.surely and len(tried) == 1 else None
            if older is None:
                return _failed(context, entry, reason, tried)
            back_to = older
        else:
            break
    seconds = context.clock.monotonic() - started
    # Before the journal is closed: who is killed here comes here again.
    _patiently(context, lambda: context.ledger.withdraw(context.target, entry.build, reason))
    if unverified is not None:
        return _not_verified(context, entry, reason, unverified, f"{seconds:.1f} s")
    _write(context, entry, Phase.DONE, f"rolled back: {reason}")
    context.say(
        f"{context.target} has {_named(entry)} again, verified {seconds:.1f} s after the decision",
        times,
        outcome=Outcome.PASS,
    )
    return RolloutResult(
        code=code,
        conclusion=f"Rolled back to {_named(entry)} in {seconds:.1f} s because of {reason}",
    )


def _return(
    context: Context, entry: JournalEntry, reason: str
) -> tuple[str, CannotVerifyError | None]:
    """Return to `entry.before` and verify it.

    Returns:
        How long each part took, in words; and why it could not be verified, if it could not.

    Raises:
        _NotRestoredError: the target does not serve.
    """
    clock, target = context.clock, context.target
    decided = clock.monotonic()
    context.say(f"rolling {target} back to {_named(entry)}", reason)
    _write(context, entry, Phase.ROLLBACK, reason)
    try:
        why = f"back to {_named(entry)}: {reason}"
        context.decide(DecisionKind.ROLLBACK, why, build=entry.build.digest)
    except RolloutError as error:  # no reason to keep a broken build in production
        context.say("the decision could not be noted", str(error), Outcome.INCONCLUSIVE)
    begun = clock.monotonic()
    try:
        _patiently(context, lambda: _change(context, entry, reason))
    except LeaseLostError:
        raise
    except RolloutError as error:
        context.say_why(error)
        raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), surely=True) from error
    done = clock.monotonic()
    unverified = None
    if entry.before is not None:
        seconds = f"{done - decided:.1f} s"
        context.say(f"{_named(entry)} is back after {seconds}; verifying that it serves")
        unverified = _verify(context)
    if entry.traffic is not None and unverified is None:
        _remove_canary(context)
    times = (
        f"decide {begun - decided:.1f} s, act {done - begun:.1f} s, "
        f"verify {clock.monotonic() - done:.1f} s"
    )
    return times, unverified


def _change(context: Context, entry: JournalEntry, reason: str) -> None:
    timeout = context.policy.deploy_timeout
    description = f"vllm-rollout {context.run_id}: rollback, {reason}"[:200]
    if entry.traffic is not None:
        give_back(context, entry, description=description)
    elif entry.before is None:
        context.platform.uninstall(context.target, timeout=timeout)
    else:
        context.platform.rollback(
            context.target, entry.before, description=description, timeout=timeout
        )


def _remove_canary(context: Context) -> None:
    """Only now: its pods could have been needed until the state before was seen to serve."""
    try:
        _patiently(context, lambda: remove_canary(context))
    except LeaseLostError:
        raise
    except RolloutError as error:
        raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), surely=False) from error


def _verify(context: Context) -> CannotVerifyError | None:
    """Verify that the target serves; why that could not be done, if it could not.

    Raises:
        _NotRestoredError: it does not serve, or is out of reach.
    """
    unverified = None
    try:
        run = context.verify(context.target)
    except CannotVerifyError as error:
        unverified = error
    except RolloutError as error:
        raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), surely=False) from error
    else:
        if run.outcome is not Outcome.PASS:
            raise _NotRestoredError(problems_of(run), surely=run.outcome is Outcome.FAIL)
    if unregistered := context.register():
        # What serves again was registered once; that this is stale is no reason to call the
        # rollback failed.
        context.say(f"{context.target} is {unregistered}", outcome=Outcome.INCONCLUSIVE)
    return unverified


def _write(context: Context, entry: JournalEntry, phase: Phase, note: str) -> None:
    def write() -> None:
        context.still_ours()
        context.journal.advance(entry, phase, note, now=context.clock.now())

    _patiently(context, write)


def _patiently(context: Context, act: Callable[[], _T]) -> _T:
    """Do `act`, again and again while what it needs does not answer: a broken build is serving."""
    until = context.clock.monotonic() + context.policy.deploy_timeout.total_seconds()
    while True:
        try:
            return act()
        except UnreachableError as error:
            if context.clock.monotonic() >= until:
                raise
            context.reporter.progress(f"the rollback waits and tries again: {error}")
        context.clock.sleep(context.policy.watch.interval)


def _older(context: Context, entry: JournalEntry) -> int | None:
    """The next older revision, of another build, with passing evidence."""
    target = context.target
    try:
        history = context.platform.history(target)
        tried = {r.build for r in history if r.number == entry.before} | {entry.build}
        older = [r for r in history if r.number < (entry.before or 0) and r.build not in tried]
        good = context.ledger.good_revision(target, older)
        if good is None or context.ledger.evidence_of(target, good) is None:
            return None
    except RolloutError:
        return None
    return good.number


def _not_verified(
    context: Context, entry: JournalEntry, reason: str, error: CannotVerifyError, seconds: str
) -> RolloutResult:
    """The end of a rollback that went well as far as is known; see `roll_back`."""
    unverified = replace(entry, unverified=True)
    _write(context, unverified, Phase.ROLLBACK, f"rolled back, not verified: {reason}")
    context.say("ROLLED BACK, NOT VERIFIED", str(error), Outcome.INCONCLUSIVE)
    return RolloutResult(
        code=ExitCode.ROLLED_BACK,
        conclusion=f"Rolled back to {_named(entry)} in {seconds} because of {reason}; not "
        f"verified: {error}. {error.remedy} The journal stays open, and the next "
        "gate-and-promote verifies the rollback before anything else",
    )


def _failed(context: Context, entry: JournalEntry, reason: str, tried: list[str]) -> RolloutResult:
    """The end that calls a person (it pages whom the policy names), with what is needed to act."""
    target = context.target
    where = f"{target.model} -e {target.environment}"
    conclusion = (
        f"A person is needed: {target} was to return to {_named(entry)} because of {reason}, and "
        f"it does not serve: {'; then '.join(tried)}. What served was left serving. To act: "
        f"vllm-rollout diagnose {where} (why replicas are not ready), vllm-rollout history {where} "
        f"(where to return to), vllm-rollout rollback {where} --to REVISION. Evidence and logs are "
        f"in {context.folder}; the journal stays open, and the next gate-and-promote takes the "
        "rollback up again"
    )
    context.say("ROLLBACK DID NOT RESTORE SERVICE", "; then ".join(tried), Outcome.FAIL)
    return RolloutResult(code=ExitCode.NEEDS_PERSON, conclusion=conclusion)


def _named(entry: JournalEntry) -> str:
    return f"revision {entry.before}" if entry.before else "nothing deployed"
