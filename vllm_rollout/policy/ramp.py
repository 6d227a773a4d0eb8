"""The ramp: the steps by which production is reached."""

import math
from decimal import Decimal
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from vllm_rollout.model.units import format_share
from vllm_rollout.policy.fields import Block, Count, Duration, Limit, ascending, broken_rule


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

    @property
    def hold_seconds(self) -> float:
        """`hold` in seconds."""
        return self.hold.total_seconds()

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
        shown = format_share(now) if by_traffic else f"{now} of {capacity} replicas"
        if now < reached:
            return f"step {number} is {shown}, {before} came before"
        reached, before = now, format_share(now) if by_traffic else str(now)
    return ""
