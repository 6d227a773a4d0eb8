"""Sentences and figures shared by verdicts of several kinds."""

from vllm_rollout.model.units import format_share

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
