"""Sentences and figures shared by verdicts of several kinds."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vllm_rollout.judge.no_answer import remedy_for
from vllm_rollout.model.load_figures import FailureKind
from vllm_rollout.model.load_result import RequestOutcome
from vllm_rollout.model.units import format_share
from vllm_rollout.model.verdict import Outcome, Verdict

FIX_FAILURES = (
    "See how the requests failed and what the replicas logged at that time; fix that before the "
    "next attempt."
)
FIX_SLOWNESS = (
    "See whether the time goes into waiting (the server's queue) or into generating, and give the "
    "deployment more replicas or faster ones."
)
FIX_MISSES = (
    "Begin with the limit that most requests missed: a late first token is waiting, slow tokens "
    "are a batch too large for the GPUs."
)


def worth_text(block: int) -> str:
    """The clause that dependent requests get."""
    return f"{block:,} of them are worth one independent request"


def may_share_text(burst: int) -> str:
    """The clause for bursts that have not come."""
    return f"up to {burst:,} requests in a row may share one cause"


def bound_text(bound: float) -> str:
    """A share to four digits, so that a bound just inside the limit does not read like it."""
    return format_share(float(f"{bound:.4g}"))


def with_failures(
    verdict: Verdict,
    kinds: Sequence[FailureKind],
    *,
    failures: int,
    alone: Callable[[], Verdict],
) -> Verdict:
    """Return a verdict on a load of which `failures` requests failed with what most of them failed
    of in its reason, in the server's words.

    `alone` gives the verdict on the answered requests alone: the remedy of a fail is that of the
    failures, and where those fail too, theirs as well.
    """
    if verdict.passed or not kinds:
        return verdict
    told = [_told(kind) for kind in kinds]
    if rest := failures - sum(kind.count for kind in kinds):
        told.append(f"{rest:,} of other kinds")
    reason = f"{verdict.reason}; failures: {'; '.join(told)}"
    if verdict.outcome is not Outcome.FAIL:
        return replace(verdict, reason=reason)
    answered = alone()
    too = f" {answered.remedy}" if answered.outcome is Outcome.FAIL else ""
    first = kinds[0]
    outcome = RequestOutcome(first.kind.partition(" ")[0])
    remedy = remedy_for(outcome=outcome, status=first.status, error=first.example)
    return replace(verdict, reason=reason, remedy=(remedy or FIX_FAILURES) + too)


def _told(kind: FailureKind) -> str:
    return f"{kind.count:,} {kind.kind}" + (f", “{kind.example}”" if kind.example else "")
