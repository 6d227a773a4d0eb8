"""Everything that is reported and recorded of one run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from vllm_rollout import __version__
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.diagnosis import findings_of
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.evidence import Evidence, GateRun, Override, Step
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.clock import Clock
from vllm_rollout.rollout.result import RolloutResult
from vllm_rollout.rollout.run import Run


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
    notify: Callable[[str, str], None]
    """Sends a message to the policy's channels: its kind and its text. It does not raise."""
    undelivered: Callable[[], list[str]]
    """Waits briefly for messages under way: a line for each that did not arrive."""
    steps: list[Step] = field(default_factory=list)
    gate_runs: list[GateRun] = field(default_factory=list)
    waived: list[str] = field(default_factory=list)
    """Reasons that would have stopped the rollout without its emergency override."""
    result: RolloutResult | None = None

    def now(self) -> datetime:
        """Wall-clock time, with its zone."""
        return self.clock.now()

    def log_step(self, title: str, detail: str = "", outcome: Outcome | None = None) -> None:
        """Add a step to the evidence and show it."""
        step = Step(at=self.now(), title=title, detail=detail, outcome=outcome)
        self.steps.append(step)
        self.reporter.step(step)

    def log_symptoms(self, error: RolloutError) -> None:
        """Log why replicas did not become ready, as far as `error` knows."""
        if isinstance(error, NotReadyError):
            for finding in findings_of(error.symptoms, self.run.policy, self.run.target.model):
                self.log_step(f"{finding.replica}: {finding.cause}", finding.text, Outcome.FAIL)

    def log_result(self, result: RolloutResult) -> None:
        """Log the end of the run."""
        self.result = result
        self.log_step(f"exit {result.code.value}", result.conclusion)

    def append_audit(
        self, kind: DecisionKind, why: str, *, who: str = "", build: str = "", evidence: str = ""
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
        )
