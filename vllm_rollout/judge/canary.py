"""Canary against baseline: the verdicts by which a step of a ramp by traffic may be passed."""

from dataclasses import dataclass, field

from vllm_rollout.judge.compare import compare_latency, compare_rate
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.verdict import Verdict
from vllm_rollout.policy import Policy

_ANALYSES = 2
"""A step that is inconclusive is judged once more, at the end of its extension."""


@dataclass(slots=True)
class Answers:
    """Probe results of one side so far."""

    total: int = 0
    failures: int = 0
    latencies_seconds: list[float] = field(default_factory=list)

    def add(self, sample: ProbeSample) -> None:
        """Add one observation."""
        self.total += sample.total
        self.failures += sample.failures
        self.latencies_seconds += sample.latencies_seconds


def canary_verdicts(baseline: Answers, canary: Answers, policy: Policy) -> dict[str, Verdict]:
    """Return the policy's comparisons of the canary with the baseline, by name."""
    rules = policy.canary
    # Each analysis may be wrong with its part of the risk, so that all are with the whole.
    analyses = _ANALYSES if rules.extend else 1
    confidence = 1 - (1 - policy.confidence) / analyses
    found: dict[str, Verdict] = {}
    if rules.latency is not None:
        found[f"P{rules.latency.percentile:g} latency"] = compare_latency(
            baseline.latencies_seconds,
            canary.latencies_seconds,
            percentile=rules.latency.percentile,
            largest_ratio=1 + rules.latency.slower,
            confidence=confidence,
            baseline_censored=baseline.failures,
            canary_censored=canary.failures,
        )
    if rules.error_rate is not None:
        found["error rate"] = compare_rate(
            baseline.failures,
            baseline.total,
            canary.failures,
            canary.total,
            largest_difference=rules.error_rate.more,
            confidence=confidence,
        )
    return found
