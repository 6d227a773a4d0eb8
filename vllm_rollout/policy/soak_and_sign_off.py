"""Soak and sign-off requirements."""

from typing import Literal, Self

from pydantic import model_validator

from vllm_rollout.model.units import format_duration
from vllm_rollout.policy.fields import Block, Duration, Span, broken_rule


class Soak(Block):
    """How long a revision stays unchanged and healthy before the next environment."""

    minimum: Duration
    """The least time it was seen healthy."""
    maximum: Duration
    """After this its evidence is stale."""
    observed_by: Literal["auto", "prometheus", "samples", "age"]
    """Who sees it: Prometheus, samples (`vllm-rollout soak`, `watch`), nobody (age), or auto."""
    grace: Duration
    """Unhealthy for longer, and the soak restarts, as it does after a restart."""
    max_gap: Span
    """Not observed for longer, and that time does not count."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            least, most = format_duration(self.minimum), format_duration(self.maximum)
            raise broken_rule(
                f"minimum ({least}) is longer than maximum ({most})", "minimum", "maximum"
            )
        return self


class SignOff(Block):
    """A named person has read the evidence and approves of it."""

    valid: Span
    """How old the evidence may be; a soak's maximum limits it too."""
