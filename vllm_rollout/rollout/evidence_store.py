"""How a run is kept when it has ended: its evidence, and its end among the decisions."""

from datetime import timedelta

from vllm_rollout.model.errors import ExitCode, RolloutError, UnreachableError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.rollout.audit_log import DecisionKind
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.result import RolloutResult

_PAUSE = timedelta(seconds=5)
_TRIES = 6


def kind_of_end(
    code: ExitCode, *, under_way: bool, done: DecisionKind | None
) -> DecisionKind | None:
    """What the end of a run is among the decisions; None where nothing was decided.

    `under_way` is whether a change of the target was; `done` what a run that ended it well has
    done, None for one that was not to decide anything.
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
    context: Context, evidence: Evidence, kind: DecisionKind | None, end: RolloutResult
) -> None:
    """Keep the evidence in the store, and note the end among the decisions.

    A store that is out of reach is asked again for a while. It raises nothing: what was done is
    done, the report folder has the evidence too, and the journal knows where the rollout stands.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            digest = context.ledger.keep(evidence)
            if kind is not None:
                context.note(kind, end.conclusion, build=_build(evidence), evidence=digest)
        except UnreachableError as error:
            if tries_left:
                context.reporter.progress(f"the evidence cannot be kept yet: {error}")
                context.clock.sleep(_PAUSE)
                continue
            context.say("the evidence is only in the report folder", str(error))
        except RolloutError as error:
            context.say("the evidence is only in the report folder", str(error))
        return


def _build(evidence: Evidence) -> str:
    """The build that the last gates were about."""
    builds = [run.build.digest for run in evidence.runs if run.build]
    return builds[-1] if builds else ""
