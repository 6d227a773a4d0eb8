"""Rollback: return to the state before, verify it, and report loudly when it does not work.

Nothing that serves is taken away for it: both platforms bring the old build up first, and where it
does not come up they leave what there is. A rollback that fails is tried once more, to the next
older revision with passing evidence; then a person is called.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.next_command import release_command
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.evidence_store import PassedRevisions
from vllm_rollout.rollout.gates import Gates
from vllm_rollout.rollout.journal import Event, JournalEntry
from vllm_rollout.rollout.lease import LeaseLostError
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.model_registry import register_target
from vllm_rollout.rollout.run import RolloutResult, Run, RunLog, not_serving, while_unreachable
from vllm_rollout.rollout.traffic_shift import TrafficShift
from vllm_rollout.rollout.verification import CannotVerifyError

_T = TypeVar("_T")


class _NotRestoredError(Exception):
    """The target does not serve as it did. `known` is False if that is only not shown."""

    def __init__(self, problem: str, *, known: bool) -> None:
        super().__init__(problem)
        self.known = known


def roll_back(
    tools: RunTools,
    entry: JournalEntry,
    reason: str,
    *,
    code: ExitCode = ExitCode.ROLLED_BACK,
    unfinished: bool = False,
) -> RolloutResult:
    """Return the target to the revision `entry.before` and verify that it serves.

    Where nothing served before, the release is removed: that is the state before. The journal is
    closed only when the end was verified, so that the next run takes up a rollback that failed.

    Where the change went well and the verification itself did not work, nothing is known against
    the target: the result is ROLLED_BACK, "not verified". The journal stays open then, so that the
    next run verifies before it promotes anything, and a canary stays until that, as its replicas
    may be needed. The watch does not wait for it: see `JournalEntry.unverified`.

    With `unfinished` it undoes what a run left, and the audit log holds nothing against the build.

    Returns:
        `code`, or ROLLED_BACK when it could not be verified, or NEEDS_PERSON when service was not
        restored.

    Raises:
        LeaseLostError: another run may have taken over; nothing more is changed.
        UnreachableError: the store did not answer for as long as a deployment may take.
    """
    return _Rollback(
        run=tools.run,
        log=tools.log,
        releases=tools.releases,
        gates=tools.gates,
        traffic=TrafficShift.of(tools),
        reason=reason,
        unfinished=unfinished,
    ).to(entry, code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollback:
    """One rollback of the run's target, for `reason`."""

    run: Run
    log: RunLog
    releases: LeasedReleases
    gates: Gates
    traffic: TrafficShift
    reason: str
    unfinished: bool

    def to(self, entry: JournalEntry, code: ExitCode) -> RolloutResult:
        """Return to `entry.before`, or to an older revision where that is not restored."""
        clock = self.log.clock
        started = clock.monotonic()
        tried: list[str] = []
        back_to: int | None = entry.before
        while True:
            entry = replace(entry, before=back_to, unverified=False)
            try:
                entry, times, unverified = self._restore(entry)
            except _NotRestoredError as error:
                tried.append(f"{_named(entry)}: {error}")
                older = self._older(entry) if error.known and len(tried) == 1 else None
                if older is None:
                    return self._failed(entry, tried)
                back_to = older
            else:
                break
        seconds = clock.monotonic() - started
        # Before the journal is closed: a run that is killed here comes here again.
        self._patiently(lambda: self._passed.withdraw(self.run.target, entry.build, self.reason))
        if unverified is not None:
            return self._not_verified(entry, unverified, f"{seconds:.1f} s")
        self._write(entry, Event.RESTORED, f"rolled back: {self.reason}")
        self.log.log_step(
            f"{self.run.target} has {_named(entry)} again, verified {seconds:.1f} s after the "
            "decision",
            times,
            outcome=Outcome.PASS,
        )
        took = f"in {seconds:.1f} s because of {self.reason}"
        return RolloutResult(code=code, conclusion=f"Rolled back to {_named(entry)} {took}")

    @property
    def _passed(self) -> PassedRevisions:
        return PassedRevisions(self.releases.platform.store)

    def _restore(self, entry: JournalEntry) -> tuple[JournalEntry, str, CannotVerifyError | None]:
        """Return to `entry.before` and verify it.

        Returns:
            The entry as written, the duration of each part as text, and why it could not be
            verified, if it could not.

        Raises:
            _NotRestoredError: the target does not serve.
        """
        clock, target = self.log.clock, self.run.target
        decided = clock.monotonic()
        self.log.log_step(f"rolling {target} back to {_named(entry)}", self.reason)
        entry = self._write(entry, Event.ROLLBACK, self.reason)
        try:
            why = f"back to {_named(entry)}: {self.reason}"
            self.log.notify(DecisionKind.ROLLBACK, why)
            self.log.append_audit(
                DecisionKind.ROLLBACK, why, build=entry.build.digest, unfinished=self.unfinished
            )
        except RolloutError as error:  # no reason to keep a broken build in production
            self.log.log_step(
                "the decision is missing from the audit log", str(error), Outcome.INCONCLUSIVE
            )
        begun = clock.monotonic()
        try:
            self._patiently(lambda: self._change(entry))
        except LeaseLostError:
            raise
        except RolloutError as error:
            self.log.log_symptoms(error)
            raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), known=True) from error
        done = clock.monotonic()
        unverified = None
        if entry.before is not None:
            seconds = f"{done - decided:.1f} s"
            self.log.log_step(f"{_named(entry)} is back after {seconds}; verifying that it serves")
            unverified = self._verify()
        if entry.traffic is not None and unverified is None:
            self._remove_canary()
        times = (
            f"decide {begun - decided:.1f} s, act {done - begun:.1f} s, "
            f"verify {clock.monotonic() - done:.1f} s"
        )
        return entry, times, unverified

    def _change(self, entry: JournalEntry) -> None:
        note = f"rollback, {self.reason}"
        if entry.traffic is not None:
            self.traffic.give_back(entry, note=note)
        elif entry.before is None:
            self.releases.uninstall(self.run.target)
        else:
            self.releases.rollback(entry.before, note)

    def _remove_canary(self) -> None:
        """Remove the canary last: its pods may be needed until the state before is verified."""
        try:
            self._patiently(self.traffic.remove_canary)
        except LeaseLostError:
            raise
        except RolloutError as error:
            raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), known=False) from error

    def _verify(self) -> CannotVerifyError | None:
        """Verify that the target serves; return why that could not be done, if it could not.

        Raises:
            _NotRestoredError: it does not serve, or cannot be reached.
        """
        target, unverified = self.run.target, None
        try:
            run = self.gates.verify(target)
        except CannotVerifyError as error:
            unverified = error
        except RolloutError as error:
            raise _NotRestoredError(f"{error} {error.remedy}".rstrip(), known=False) from error
        else:
            if run.outcome is not Outcome.PASS:
                raise _NotRestoredError(not_serving(run), known=run.outcome is Outcome.FAIL)
        if unregistered := register_target(self.run, self.releases.platform, self.log):
            # What serves again was registered once; that this is stale is no reason to call the
            # rollback failed.
            self.log.log_step(f"{target} is {unregistered}", outcome=Outcome.INCONCLUSIVE)
        return unverified

    def _write(self, entry: JournalEntry, event: Event, note: str) -> JournalEntry:
        return self._patiently(lambda: self.releases.advance(entry, event, note))

    def _patiently(self, act: Callable[[], _T]) -> _T:
        """Do `act`, again while a system it needs does not answer: a broken build is serving."""
        clock, policy = self.log.clock, self.run.policy
        until = clock.monotonic() + policy.deploy_timeout.total_seconds()
        return while_unreachable(
            act,
            clock=clock,
            pause=policy.watch.interval,
            stop=lambda _: clock.monotonic() >= until,
            waits=lambda error: self.log.reporter.progress(
                f"the rollback waits and tries again: {error}"
            ),
        )

    def _older(self, entry: JournalEntry) -> int | None:
        """Return the next older revision, of another build, with passing evidence."""
        target = self.run.target
        try:
            history = self.releases.platform.history(target)
            tried = {r.build for r in history if r.number == entry.before} | {entry.build}
            older = [r for r in history if r.number < (entry.before or 0) and r.build not in tried]
            good = self._passed.good_revision(target, older)
            if good is None or self._passed.evidence_of(target, good) is None:
                return None
        except RolloutError:
            return None
        return good.number

    def _not_verified(
        self, entry: JournalEntry, error: CannotVerifyError, seconds: str
    ) -> RolloutResult:
        """Return the result of a rollback whose verification did not work; see `roll_back`."""
        note = f"rolled back, not verified: {self.reason}"
        self._write(replace(entry, unverified=True), Event.UNVERIFIED, note)
        self.log.log_step("ROLLED BACK, NOT VERIFIED", str(error), Outcome.INCONCLUSIVE)
        return RolloutResult(
            code=ExitCode.ROLLED_BACK,
            conclusion=f"Rolled back to {_named(entry)} in {seconds} because of {self.reason}; not "
            f"verified: {error}. {error.remedy} The journal stays open. To verify the "
            f"rollback before anything else: {self.run.command}",
        )

    def _failed(self, entry: JournalEntry, tried: list[str]) -> RolloutResult:
        """Return the result that calls a person (and pages, if the policy says so) to act."""
        target, failures = self.run.target, "; then ".join(tried)
        conclusion = (
            f"A person is needed: {target} was to return to {_named(entry)} because of "
            f"{self.reason}, and did not: {failures}. What served was left serving. "
            f"To act: {release_command('diagnose', target)} (why replicas are not ready), "
            f"{release_command('history', target)} (where to return to), "
            f"{release_command('rollback', target, '--to', 'REVISION')}. "
            f"Evidence and logs are in {self.run.folder}; the journal stays open. "
            f"To take the rollback up again: {self.run.command}"
        )
        self.log.log_step("ROLLBACK DID NOT RESTORE SERVICE", failures, Outcome.FAIL)
        return RolloutResult(code=ExitCode.NEEDS_PERSON, conclusion=conclusion)


def _named(entry: JournalEntry) -> str:
    return f"revision {entry.before}" if entry.before else "nothing deployed"
