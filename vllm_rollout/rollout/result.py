"""Results of a rollout and its parts; maps a failed gate run to an exit code."""

from dataclasses import dataclass

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.rollout.journal import JournalEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult:
    """Result of a rollout, or of a part that ends it.

    `waits_for` names what is missing besides a sign-off (soak, window, on-call), where the gates
    passed; `awaits_sign_off` is whether the evidence waits for one.
    """

    code: ExitCode
    conclusion: str
    waits_for: str = ""
    awaits_sign_off: bool = False


@dataclass(frozen=True, slots=True)
class Undo:
    """A change that has to be rolled back, and the exit code once that is done."""

    entry: JournalEntry
    reason: str
    code: ExitCode = ExitCode.ROLLED_BACK


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
