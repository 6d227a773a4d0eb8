"""The ramp by which production is reached, and how much worse than the baseline a canary may be."""

import math
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from vllm_rollout.model.units import format_share, of_total
from vllm_rollout.policy.fields import (
    Block,
    Count,
    Duration,
    Limit,
    MayBeOff,
    Percentile,
    ascending,
    broken_rule,
)


class RampStep(Block):
    """A number of replicas or a share of them, and how long it is held."""

    replicas: Count | None = None
    """Replicas that run the new build; at most all."""
    share: Limit | None = None
    """Share of all replicas, rounded up."""
    hold: Duration
    """How long the step is watched before the next."""

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if (self.replicas is None) == (self.share is None):
            raise broken_rule("needs either replicas or share, and not both")
        return self

    def replicas_of(self, capacity: int) -> int:
        """Replicas of `capacity` that run the new build at this step: 1 at least, all at most.

        Raises:
            ValueError: `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"{capacity} replicas cannot be ramped")
        if self.share is None:
            return min(self.replicas or 1, capacity)
        # In decimal: 7% of 100 is 7 replicas, not the 8 that 0.07 * 100 rounds up to.
        return max(1, math.ceil(Decimal(repr(self.share)) * capacity))

    def share_of(self, capacity: int) -> float:
        """The step's share of `capacity` replicas, or of the traffic that they carry.

        Raises:
            ValueError: `capacity` is below 1.
        """
        if self.share is not None:
            return self.share
        return self.replicas_of(capacity) / capacity


def _climbs_to_all(steps: tuple[RampStep, ...]) -> tuple[RampStep, ...]:
    counts = [step.replicas for step in steps if step.replicas is not None]
    shares = [step.share for step in steps if step.share is not None]
    if not shares or steps[-1].share != 1:
        raise broken_rule("the last step must be share: 100%")
    if any(step.replicas is None for step in steps[: len(counts)]):
        raise broken_rule("steps in replicas come before steps in share")
    if not ascending(counts) or not ascending(shares):
        raise broken_rule("each step must be greater than the one before it")
    return steps


Ramp = Annotated[tuple[RampStep, ...], AfterValidator(_climbs_to_all)]


def falling_step(ramp: tuple[RampStep, ...], capacity: int, *, by_traffic: bool = False) -> str:
    """Return where a ramp would take replicas of `capacity` (or traffic) away, or ""."""
    reached: float = 0
    before = ""
    for number, step in enumerate(ramp, start=1):
        now: float = step.share_of(capacity) if by_traffic else step.replicas_of(capacity)
        shown = format_share(now) if by_traffic else of_total(int(now), capacity, "replica")
        if now < reached:
            return f"step {number} is {shown}, {before} came before"
        reached, before = now, format_share(now) if by_traffic else str(now)
    return ""


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
