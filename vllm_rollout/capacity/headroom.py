"""Headroom of a deployment over the expected traffic, by its known capacity."""

import math
from dataclasses import dataclass, replace
from datetime import datetime

from vllm_rollout.capacity.model import Capacity, StopReason
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.units import format_share, format_value
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod
from vllm_rollout.next_command import release_command

NO_WORD = frozenset(
    {StopReason.UNMEASURED, StopReason.NOT_RECOVERED, StopReason.CHANGED, StopReason.UNSTEADY}
)
"""Ends after which what was found is not relied on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCapacity:
    """A capacity found for a build: from `lower` to `upper` (infinite where not refuted)."""

    lower: float
    upper: float
    confidence: float
    found: datetime
    same_question: bool
    """Whether SLOs, requests and replicas were what they are now."""


def capacity_found(capacity: Capacity, *, expected_per_second: float, requests: int) -> Verdict:
    """Return the verdict whether the capacity is at least the expected traffic, per second.

    Passes when the lower end of the interval is not below it, fails when the upper end is, and is
    inconclusive between; and whenever the search could not go on as it should have.
    """
    lower, upper = capacity.lower or None, capacity.upper
    found = Verdict(
        outcome=Outcome.INCONCLUSIVE,
        reason=_sentence(capacity, expected_per_second),
        measured=capacity.estimate,
        lower=lower,
        upper=upper if math.isfinite(upper) else None,
        limit=expected_per_second,
        confidence=capacity.confidence,
        n=requests,
        unit="1/s",
        method=VerdictMethod.SEARCH,
        remedy=_remedy(capacity),
    )
    if capacity.ending in NO_WORD:
        return found
    if capacity.lower >= expected_per_second:
        return replace(found, outcome=Outcome.PASS, remedy="")
    if upper < expected_per_second:
        return replace(
            found,
            outcome=Outcome.FAIL,
            remedy="Give the deployment more replicas or faster ones, or make requests shorter.",
        )
    return found


def with_headroom(
    verdict: Verdict,
    known: KnownCapacity | None,
    *,
    deployment: Deployment,
    expected_per_second: float,
    offered_per_second: float | None,
) -> Verdict:
    """The load gate's verdict with a word on headroom: never a guess, and no change of outcome."""
    if not verdict.passed:
        return verdict
    return replace(
        verdict,
        reason=f"{verdict.reason}; "
        + _headroom(known, deployment, expected_per_second, offered_per_second or 0.0),
    )


def _headroom(
    known: KnownCapacity | None, deployment: Deployment, expected: float, offered: float
) -> str:
    if known is not None and known.same_question and known.lower > 0:
        return (
            f"headroom: {times_text(known.lower, known.upper, expected)} the expected traffic "
            f"(capacity {interval_text(known.lower, known.upper, known.confidence)}, found for "
            f"this build on {known.found:%Y-%m-%d})"
        )
    search = release_command("capacity", deployment)
    why = ""
    if known is not None and not known.same_question:
        why = " (the capacity on record is for other SLOs, requests or replicas)"
    if offered >= 1.05 * expected:
        return (
            f"headroom: at least {offered / expected:.2g} × the expected traffic, by this load; "
            f"how much in all is not known{why}; it is found by: {search}"
        )
    return f"headroom over the expected traffic is not known{why}; it is found by: {search}"


def times_text(lower: float, upper: float, expected: float) -> str:
    """`3.8 – 4.4 ×`, or `at least 3.8 ×`; rounded so as to promise no more than is known."""
    low = math.floor(round(lower / expected * 100, 6)) / 100
    if not math.isfinite(upper):
        return f"at least {low:.4g} ×"
    return f"{low:.4g} – {math.ceil(round(upper / expected * 100, 6)) / 100:.4g} ×"


def interval_text(lower: float, upper: float, confidence: float) -> str:
    """`38 – 44/s at 95%`; one end where there is no other; "not known" where there is none."""
    sure = f"at {format_share(confidence)}"
    if lower > 0 and math.isfinite(upper):
        return f"{_plain(lower)} – {format_value(upper, '1/s')} {sure}"
    if lower > 0:
        return f"at least {format_value(lower, '1/s')} {sure}"
    return f"below {format_value(upper, '1/s')} {sure}" if math.isfinite(upper) else "not known"


def _plain(rate: float) -> str:
    return format_value(rate, "1/s").removesuffix("/s")


def _sentence(capacity: Capacity, expected: float) -> str:
    interval = interval_text(capacity.lower, capacity.upper, capacity.confidence)
    if capacity.estimate is not None:
        interval = f"{format_value(capacity.estimate, '1/s')} ({interval})"
    text = f"highest rate at which the SLOs hold: {interval}"
    if capacity.lower > 0:
        times = times_text(capacity.lower, capacity.upper, expected)
        text += f"; {times} the expected {format_value(expected, '1/s')}"
    else:
        text += f"; expected are {format_value(expected, '1/s')}"
    return f"{text}. {_WHY[capacity.ending]}{f': {capacity.detail}' if capacity.detail else ''}."


_WHY = {
    StopReason.FOUND: "Both ends were shown",
    StopReason.AT_LEAST: "No higher rate may be sent (`capacity.max_rate`)",
    StopReason.BELOW: "They hold at no rate that was tried",
    StopReason.GENERATOR: "The load generator could not send more",
    StopReason.PROBES: "No more loads may be sent (`capacity.most_probes`)",
    StopReason.UNPROVED: "Rates held, and no load was long enough to prove one",
    StopReason.UNSTEADY: "The service is not steady",
    StopReason.UNMEASURED: "A load could not be measured",
    StopReason.NOT_RECOVERED: "The server did not recover from a load",
    StopReason.CHANGED: "The deployment changed under the search",
    StopReason.INTERRUPTED: "The search was interrupted",
}


def _remedy(capacity: Capacity) -> str:
    return {
        StopReason.GENERATOR: "Use more load generator processes: --workers N.",
        StopReason.PROBES: "Allow more loads: --probes N.",
        StopReason.UNPROVED: "Raise `capacity.proof`.",
        StopReason.AT_LEAST: "Allow a higher rate: --max-rate.",
        StopReason.UNSTEADY: "Find out what else uses the server, and search again.",
        StopReason.UNMEASURED: "Fix what is named, and search again.",
        StopReason.NOT_RECOVERED: "See the replicas' logs; restart what hangs, and search again.",
        StopReason.CHANGED: "Search again while the deployment stands still.",
        StopReason.INTERRUPTED: "Search again; what is known by now is in the report.",
        StopReason.FOUND: "Search on: a smaller --precision, and more --probes.",
        StopReason.BELOW: "Search from a lower rate: --from.",
    }[capacity.ending]
