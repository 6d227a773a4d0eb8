"""The rollout's steps as places on one axis of time."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import format_about
from vllm_rollout.model.verdict import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A step, how long until the next, and where that is drawn, in percent of the whole."""

    at: datetime
    title: str
    detail: str
    outcome: Outcome | None
    lasted: str
    left: float
    width: float


def rollout_moments(evidence: Evidence) -> list[Moment]:
    """The steps in order; the last lasts until the run is finished."""
    steps = evidence.steps
    if not steps:
        return []
    ends = [*(step.at for step in steps), max(evidence.finished, steps[-1].at)]
    whole = (ends[-1] - ends[0]).total_seconds()
    moments = []
    for step, (begin, end) in zip(steps, pairwise(ends), strict=True):
        title, outcome = one_line(step.title), step.outcome
        if title == f"exit {evidence.exit_code}":  # a word of command lines
            title, outcome = "End of the rollout", evidence.outcome
        lasted = max(end - begin, timedelta(0))
        moments.append(
            Moment(
                at=step.at,
                title=title,
                detail=step.detail,
                outcome=outcome,
                lasted=format_about(lasted),
                left=_share((begin - ends[0]).total_seconds(), whole),
                width=_share(lasted.total_seconds(), whole),
            )
        )
    return moments


def _share(seconds: float, whole: float) -> float:
    return round(100 * min(max(seconds / whole, 0.0), 1.0), 2) if whole > 0 else 0.0
