"""One rollout: its identity, its clock, its results, and everything reported and recorded of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from vllm_rollout import __version__
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.diagnosis import findings_of
from vllm_rollout.model.deployment import Deployment, Revision
from vllm_rollout.model.errors import ExitCode, RolloutError, UnreachableError, UsageError
from vllm_rollout.model.evidence import Evidence, GateRun, Override, Step
from vllm_rollout.next_command import promote_command
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.platform.writer import Store
from vllm_rollout.policy import Policy
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.evidence_store import key_of_run, store_evidence
from vllm_rollout.rollout.journal import JournalEntry

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """Emergency override: a named person waives preconditions, for a stated reason.

    It waives time and people: the soak, the deployment windows and freezes, the on-call check, a
    pending sign-off, and evidence of earlier stages. The gates still run and must pass, a rejection
    stands, the ramp is climbed and production is watched.
    """

    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One rollout from `source` to `target`, with the policy of its model.

    `who` runs it and `reason` is what they gave; `folder` takes its reports and logs.
    """

    id: str
    source: Deployment
    target: Deployment
    policy: Policy
    who: str
    reason: str
    folder: Path
    emergency: Emergency | None = None
    again: str = ""
    """Who asks for the build though it was rolled back from the target; empty for nobody."""

    @property
    def serves_users(self) -> bool:
        """True if the target is the last environment, the one with users' traffic."""
        return self.target.environment == self.policy.order[-1]

    @property
    def command(self) -> str:
        """The command line that goes on from the journal, or begins the same rollout again."""
        return promote_command(self.target.model, self.target.environment)


# CLOCK_MONOTONIC stands still while a Linux machine is suspended: a lease would seem to last.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Source of time for a rollout."""

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""

    def monotonic(self) -> float:
        """Seconds that never run backwards, and go on while the machine sleeps."""

    def sleep(self, duration: timedelta) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, time asleep included where the system tells it."""
        return time.clock_gettime(_ELAPSED)

    def sleep(self, duration: timedelta) -> None:
        """Wait."""
        time.sleep(max(0.0, duration.total_seconds()))


def while_unreachable(
    act: Callable[[], T],
    *,
    clock: Clock,
    pause: timedelta,
    stop: Callable[["RetryCallState"], bool],
    waits: Callable[[str], None],
) -> T:
    """Do `act`, and again after each `pause` while a system it needs does not answer.

    `waits` is given the error before each pause; `stop` says whether it was the last attempt.

    Raises:
        UnreachableError: the last attempt's.
    """
    from tenacity import Retrying, retry_if_exception_type

    again = Retrying(
        retry=retry_if_exception_type(UnreachableError),
        stop=stop,
        before_sleep=lambda state: waits(str(state.outcome and state.outcome.exception())),
        sleep=lambda _: clock.sleep(pause),
        reraise=True,
    )
    return again(act)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult:
    """Result of a rollout, or of a part that ends it.

    `waits_for` names what is missing besides a sign-off (soak, window, on-call), where the gates
    passed; `awaits_sign_off` is whether the evidence waits for one. `decision` is what was decided,
    where the code does not tell.
    """

    code: ExitCode
    conclusion: str
    waits_for: str = ""
    awaits_sign_off: bool = False
    decision: DecisionKind | None = None


@dataclass(frozen=True, slots=True)
class Undo:
    """A change that has to be rolled back, and the exit code once that is done."""

    entry: JournalEntry
    reason: str
    code: ExitCode = ExitCode.ROLLED_BACK


def not_serving(run: GateRun) -> str:
    """Return why a verification is no pass; "it does not serve" only where it was seen."""
    if run.outcome is Outcome.FAIL:
        return f"it does not serve: {problems_of(run)}"
    path = f", as {run.unreachable} could not be reached" if run.unreachable else ""
    return f"it was not seen to serve{path}: {problems_of(run)}"


def problems_of(run: GateRun) -> str:
    """Return the gates that did not pass and other problems of the run, in one line; or ""."""
    parts = [f"{g.gate} ({g.outcome})" for g in run.gates if g.outcome is not Outcome.PASS]
    parts += [f"{name} (not run)" for name in run.missing]
    if run.changed:
        parts.append(run.changed)
    return ", ".join(dict.fromkeys(parts))


def refusal_of(run: GateRun) -> RolloutResult | None:
    """Return the result of a rollout whose gates did not pass; None where they passed."""
    if run.outcome is Outcome.PASS:
        return None
    problems = problems_of(run)
    if run.outcome is Outcome.FAIL:
        return RolloutResult(
            code=ExitCode.GATE_FAILED, conclusion=f"Gates failed, nothing promoted: {problems}"
        )
    if run.unreachable:
        return RolloutResult(
            code=ExitCode.UNREACHABLE,
            conclusion=f"Out of reach, nothing promoted: {problems}. {_why_unreachable(run)}",
        )
    return RolloutResult(
        code=ExitCode.INCONCLUSIVE, conclusion=f"Inconclusive, nothing promoted: {problems}"
    )


def _why_unreachable(run: GateRun) -> str:
    """Return the error of the first gate that could not reach a system."""
    error = next((g.error for g in run.gates if g.unreachable and g.error), "")
    return f"{error} ({run.unreachable})" if run.unreachable not in error else error


class Reporter(Protocol):
    """Shows a rollout on a terminal while it runs."""

    def step(self, step: Step) -> None:
        """Show a step that was done or observed."""

    def gate(self, text: str) -> None:
        """Show a gate that ended."""

    def progress(self, text: str) -> None:
        """Show the progress of something that takes time."""


@dataclass(slots=True, kw_only=True)
class RunLog:
    """Steps, gate runs, waived preconditions, audit entries and notifications of one run."""

    run: Run
    clock: Clock
    reporter: Reporter
    audit: AuditLog
    send: Callable[..., None]
    """Sends a message to the policy's channels, as `Notifier.tell`. It does not raise."""
    undelivered: Callable[..., list[str]]
    """Returns a line for each message that did not arrive, as `Notifier.undelivered`."""
    announce: Callable[..., None] = lambda *_, **__: None
    """Sends a message that is for status pages first, as `Notifier.tell`."""
    close_left: Callable[[], None] = lambda: None
    """Closes what an earlier run has left open there, as `Notifier.close_left`."""
    steps: list[Step] = field(default_factory=list)
    gate_runs: list[GateRun] = field(default_factory=list)
    waived: list[str] = field(default_factory=list)
    """Reasons that would have stopped the rollout without its emergency override."""
    result: RolloutResult | None = None
    passed_revision: Revision | None = None
    """The target's revision that passed its gates in this run, or in the one it goes on with."""
    grown_from: str = ""
    """Digest of the run's evidence as it was stored last; empty until it is."""
    build: str = ""
    """Digest of the build that is promoted or left; empty until it is known."""
    missed: list[str] = field(default_factory=list)
    """Messages that did not arrive, a line for each."""
    sign_off: str = ""
    """Whose sign-off the promotion rests on, and what proves it; empty for nobody's."""
    told: tuple[str, str] = ("", "")
    """Kind and text of the last message."""
    rollout: str = ""
    """Id of the run that began the rollout, where this one goes on with it; else empty."""

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""
        return self.clock.now()

    def log_step(self, title: str, detail: str = "", outcome: Outcome | None = None) -> None:
        """Add a step to the evidence and show it."""
        step = Step(at=self.now(), title=title, detail=detail, outcome=outcome)
        self.steps.append(step)
        self.reporter.step(step)

    def notify(self, kind: str, text: str, *, headline: str = "") -> None:
        """Send a message to the policy's channels: its kind and its text. It does not raise."""
        self.told = (kind, text)
        self.send(kind, text, **self._about(headline=headline))

    def announce_step(self, text: str) -> None:
        """Send that the rollout goes on, and how far. It does not raise."""
        self.announce(MessageKind.STEP, text, **self._about())

    def announce_end(self, text: str, *, rollout: str = "") -> None:
        """Send that a rollout is over, where no message of its own says so. It does not raise."""
        self.announce(
            MessageKind.ENDED, text, **{**self._about(), "rollout": rollout or self.rollout}
        )

    def _about(self, headline: str = "") -> dict[str, str]:
        about = {"build": self.build, "headline": headline, "rollout": self.rollout}
        return {name: value for name, value in about.items() if value}

    def log_undelivered(self, *, wait: bool) -> None:
        """Log each message that did not arrive; `wait` for those under way, for their deadline."""
        for line in self.undelivered(wait=wait):
            self.missed.append(line)
            self.log_step("a message did not arrive", line, Outcome.INCONCLUSIVE)

    def log_symptoms(self, error: RolloutError) -> None:
        """Log why replicas did not become ready, as far as `error` knows."""
        if isinstance(error, NotReadyError):
            for finding in findings_of(error.symptoms, self.run.policy, self.run.target):
                self.log_step(f"{finding.replica}: {finding.cause}", finding.text, Outcome.FAIL)

    def log_result(self, result: RolloutResult) -> None:
        """Log the end of the run; the conclusion is shown by whoever ends it, as the last line."""
        self.result = result
        title = f"exit {result.code.value}"
        self.steps.append(Step(at=self.now(), title=title, detail=result.conclusion))
        self.reporter.step(replace(self.steps[-1], detail=""))

    def append_audit(
        self,
        kind: DecisionKind,
        why: str,
        *,
        who: str = "",
        build: str = "",
        evidence: str = "",
        unfinished: bool = False,
    ) -> None:
        """Add a decision about the target to the model's audit log.

        Raises: as `AuditLog.append`, and as the store.
        """
        self.audit.append(
            kind,
            model=self.run.target.model,
            environment=self.run.target.environment,
            at=self.now(),
            who=who or self.run.who,
            why=why,
            run_id=self.run.id,
            build=build,
            evidence=evidence,
            unfinished=unfinished,
        )

    def waive(self, reason: str) -> bool:
        """Return whether an emergency override waives `reason`; it is recorded then."""
        if self.run.emergency is None:
            return False
        self.waived.append(reason)
        return True

    def evidence(self, started: datetime, result: RolloutResult | None) -> Evidence:
        """Return the evidence so far; `result` is None until the run has ended."""
        emergency = self.run.emergency
        return Evidence(
            run_id=self.run.id,
            model=self.run.source.model,
            suite_version=__version__,
            started=started,
            finished=self.now(),
            runs=tuple(self.gate_runs),
            steps=tuple(self.steps),
            conclusion=result.conclusion if result else "",
            exit_code=int(result.code) if result else None,
            override=Override(
                by=emergency.by, reason=emergency.reason, passed_over=tuple(self.waived)
            )
            if emergency
            else None,
            awaits_sign_off=bool(result and result.awaits_sign_off and not result.waits_for),
            previous=self.grown_from,
            sign_off=self.sign_off,
        )

    def key(self) -> bytes:
        """Return the key that signs the run's evidence; empty, and logged, where it is gone."""
        try:
            return key_of_run(self.run.policy.evidence)
        except UsageError as error:
            self.log_step("the evidence is not signed", str(error), Outcome.INCONCLUSIVE)
            return b""

    def store_evidence(self, store: Store, started: datetime) -> str:
        """Store the evidence so far and return its digest; what follows grows from it."""
        self.grown_from = store_evidence(store, self.evidence(started, None), self.key())
        return self.grown_from
