"""Start-up time of a replica, by model size."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from vllm_rollout.policy.fields import Block, Count, Number, Span, ascending, broken_rule

_SIZE_IN_NAME = re.compile(r"(?:^|-)(?:([0-9]+)x)?([0-9]+(?:\.[0-9]+)?)b(?:-|$)")


def guess_parameters(model: str) -> float | None:
    """Billions of parameters by a model's name, or None: llama-2-7b 7, x-1.5b 1.5, m-8x7b 56."""
    found = _SIZE_IN_NAME.search(model)
    return int(found[1] or 1) * float(found[2]) if found else None


class StartupThreshold(Block):
    """failureThreshold of models up to a size."""

    up_to: Annotated[Number, Field(gt=0)]
    """Billions of parameters."""
    failure_threshold: Count
    """Probes that may fail before a replica is given up."""


class StartupProbe(Block):
    """How long a model may take to load."""

    period: Span
    """Time between probes."""
    thresholds: Annotated[tuple[StartupThreshold, ...], Field(min_length=1)]
    """The first row whose `up_to` fits a model counts for it."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not ascending(row.up_to for row in self.thresholds):
            raise broken_rule("up_to must grow from row to row", "thresholds")
        return self

    @property
    def period_seconds(self) -> float:
        """`period` in seconds."""
        return self.period.total_seconds()

    def failure_threshold(self, parameters: float | None) -> int | None:
        """The threshold for `parameters` billions; None when unknown or larger than every row."""
        if parameters is None:
            return None
        fitting = (row.failure_threshold for row in self.thresholds if parameters <= row.up_to)
        return next(fitting, None)
