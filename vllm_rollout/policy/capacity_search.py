"""Rules of the search for the highest rate at which the SLOs hold."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from vllm_rollout.policy.fields import Block, Count, Limit, Rate, Span, broken_rule


class CapacitySearch(Block):
    """The search of `vllm-rollout capacity`: short loads, each at one rate."""

    precision: Limit
    """Relative width of the interval that is looked for."""
    most_probes: Annotated[Count, Field(ge=3)]
    """Loads sent at most."""
    probe: Span
    """The shortest of them lasts this long, unless it ends early."""
    proof: Span
    """The longest may last this long: to prove a small error rate takes many requests."""
    max_rate: Rate
    """No load has a higher rate."""
    settle: Span
    """How long the server may take after a load until it answers as it did before."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.probe > self.proof:
            raise broken_rule("probe is longer than proof", "probe", "proof")
        if self.precision >= 1:
            raise broken_rule("precision must be below 100%", "precision")
        return self

    @property
    def probe_seconds(self) -> float:
        """`probe` in seconds."""
        return self.probe.total_seconds()

    @property
    def proof_seconds(self) -> float:
        """`proof` in seconds."""
        return self.proof.total_seconds()

    @property
    def settle_seconds(self) -> float:
        """`settle` in seconds."""
        return self.settle.total_seconds()
