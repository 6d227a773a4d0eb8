"""Verdict on whether a deployment carries the traffic that production expects."""

import math
from dataclasses import replace

from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.model.verdict import Verdict

# Poisson arrivals reach their rate only on average; this many standard deviations below it is
# still the rate that was planned (one-sided 99.9%).
_POISSON_SIGMAS = 3.09


def capacity_verdict(
    *,
    unserved: int,
    total: int,
    offered_per_second: float | None,
    expected_per_second: float,
    limit: float,
    confidence: float,
) -> Verdict:
    """Judge the share of requests left unserved while the expected rate was offered.

    `offered_per_second` is what the generator really sent, None where no time passed. A load below
    the expected rate proves nothing about it: inconclusive, however well it was served.
    """
    seconds = total / offered_per_second if offered_per_second else None
    return at_expected_rate(
        rate_verdict(unserved, total, limit=limit, confidence=confidence),
        offered_per_second=offered_per_second,
        expected_per_second=expected_per_second,
        seconds=seconds,
    )


def at_expected_rate(
    verdict: Verdict,
    *,
    offered_per_second: float | None,
    expected_per_second: float,
    seconds: float | None,
) -> Verdict:
    """The verdict on unserved requests, inconclusive unless the expected rate was offered.

    `seconds` is how long `offered_per_second` was offered.
    """
    offered = offered_per_second or 0.0
    slack = _POISSON_SIGMAS * math.sqrt(expected_per_second / seconds) if seconds else 0.0
    if not offered >= expected_per_second - slack:
        return verdict.inconclusive_because(
            f"{offered:.4g} requests/s were sent and {expected_per_second:.4g}/s "
            "are expected in production",
            "Raise `load.rate` to the expected rate, or `load.workers` if the generator lagged.",
        )
    return replace(
        verdict,
        reason=f"at {offered:.4g} requests/s (expected {expected_per_second:.4g}/s): "
        f"{verdict.reason}",
    )
