"""Plain check of a few samples: each one within the limit, without statistics."""

import math
from collections.abc import Sequence

from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod


def every_sample_within(
    seconds: Sequence[float],
    *,
    limit_seconds: float,
    failed: int = 0,
    error: str = "",
    remedy: str = "See the replicas' logs.",
) -> Verdict:
    """Pass if no sample failed and the slowest took less than `limit_seconds`.

    `error` is that of a sample that failed, and `remedy` what to do about it.
    No sample at all, or one that is not a finite time, is inconclusive.
    """
    total = len(seconds) + failed
    slowest = max(seconds, default=None)
    if failed:
        outcome, reason = Outcome.FAIL, f"{failed} of {total} sample requests were not answered"
        reason += f": {error}" if error else ""
    elif slowest is None or not all(math.isfinite(s) and s >= 0 for s in seconds):
        return Verdict(
            outcome=Outcome.INCONCLUSIVE,
            reason="no usable sample was taken",
            limit=limit_seconds,
            n=total,
            unit="s",
            method=VerdictMethod.COMPARED,
            remedy="Ask for at least one sample request in the policy.",
        )
    elif slowest < limit_seconds:
        outcome, reason = Outcome.PASS, f"the slowest of {total} sample requests was in time"
        remedy = ""
    else:
        late = sum(s >= limit_seconds for s in seconds)
        outcome, reason = Outcome.FAIL, f"{late} of {total} sample requests were too slow"
        remedy = "Compare with the server's own queue and batch metrics; give it more room or GPUs."
    return Verdict(
        outcome=outcome,
        reason=reason,
        measured=slowest,
        limit=limit_seconds,
        n=total,
        unit="s",
        method=VerdictMethod.COMPARED,
        remedy=remedy,
    )
