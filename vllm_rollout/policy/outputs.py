"""The sample outputs that QA reads, and what can be checked of them by rule."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from vllm_rollout.policy.fields import (
    Block,
    Count,
    CountOrZero,
    MayBeOff,
    Number,
    Span,
    Switch,
    Text,
    broken_rule,
)


def pattern(value: str) -> str:
    """`value`, if it is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise broken_rule(f"{value!r} is not a regular expression: {error}") from None
    return value


Pattern = Annotated[Text, AfterValidator(pattern)]


class Sample(Block):
    """One prompt, and what its answer must be like."""

    prompt: Text
    """What is sent."""
    contains: Annotated[Text | None, MayBeOff()] = None
    """Text that the answer must contain."""
    matches: Annotated[Pattern | None, MayBeOff()] = None
    """Regular expression that must be found in the answer."""
    is_json: Switch = False
    """Whether the answer must be JSON."""


class Outputs(Block):
    """The model's answers to sample prompts; QA finds them in the report and signs them off."""

    samples: Annotated[tuple[Sample, ...], Field(min_length=1, max_length=50)]
    """The prompts."""
    temperature: Annotated[Number | None, Field(ge=0), MayBeOff()]
    """Sampling temperature: 0 is greedy; off leaves it to the server."""
    seed: Annotated[CountOrZero | None, MayBeOff()]
    """Seed of sampling; off: none."""
    max_tokens: Count
    """Tokens asked for, each."""
    timeout: Span
    """How long an answer may take."""

    @property
    def sampling(self) -> dict[str, float]:
        """`temperature` and `seed`, as far as they are on, as a request has them."""
        given = {"temperature": self.temperature, "seed": self.seed}
        return {
            name: int(value) if value == int(value) else value
            for name, value in given.items()
            if value is not None
        }

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()
