"""Canary rules: the kind of ramp, and how much worse than the baseline a canary may be."""

from typing import Annotated, Literal

from vllm_rollout.policy.fields import Block, Duration, Limit, MayBeOff, Percentile


class CanaryLatency(Block):
    """A percentile of the canary's latency against the baseline's."""

    percentile: Percentile
    """Percentile of latency."""
    slower: Limit
    """By how much of the baseline's it may be longer."""


class CanaryErrors(Block):
    """The canary's share of failed requests against the baseline's."""

    more: Limit
    """By how much it may be greater."""


class Canary(Block):
    """A ramp's canary: how it gets its share, and what it is held against while both serve."""

    by: Literal["replicas", "traffic"]
    """Whether the release's own replicas change builds, or traffic moves to a release beside it."""
    latency: Annotated[CanaryLatency | None, MayBeOff()]
    """Latency against the baseline, in a ramp by traffic."""
    error_rate: Annotated[CanaryErrors | None, MayBeOff()]
    """Failed requests against the baseline, in a ramp by traffic."""
    extend: Duration
    """How much longer a step is held where the two do not differ clearly yet; then it is undone."""

    @property
    def compares(self) -> bool:
        """True if the canary is held against the baseline."""
        return self.latency is not None or self.error_rate is not None
