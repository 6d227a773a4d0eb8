"""Loads of more than one rate and one prompt, their early end, and the search for capacity."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vllm_rollout.policy.fields import (
    Block,
    Count,
    Limit,
    MayBeOff,
    Number,
    Rate,
    Span,
    Text,
    broken_rule,
)
from vllm_rollout.policy.fields import Switch as OnOff


class EarlyStop(Block):
    """The load is watched, and ends before its time when enough is known."""

    when: Literal["failed", "decided"]
    """failed: a gate has failed with enough confidence to stand; decided: all passed or failed."""
    risk: Annotated[Limit, Field(lt=1)]
    """Part of a verdict's risk that is spent before the end, the rest being for the end."""
    stall: Span
    """The longest stall to be reckoned with: it may be why all requests due in it are bad."""

    @property
    def stall_seconds(self) -> float:
        """`stall` in seconds."""
        return self.stall.total_seconds()


class LoadOutage(Block):
    """When failed requests are an outage, which fails every gate on the load and ends it."""

    failing: Span
    """For so long every request failed."""
    refused: Span
    """For so long every connection did: nothing listens any more."""
    requests: Count
    """So many in a row at least."""


class Stretch(Block):
    """A stretch of the load: one rate, or one that goes evenly to another."""

    rate: Rate
    """Arrivals at its beginning, for example 5/s."""
    to: Rate | None = None
    """Arrivals at its end; the same as at its beginning when not given."""
    for_: Span = Field(alias="for")
    """How long it lasts."""


class Replay(Block):
    """A recorded trace, sent again."""

    file: Text
    """CSV or JSON lines with a time, prompt and output tokens of each request."""
    speed: Annotated[Number, Field(gt=0)] = 1
    """How many times as fast."""


class TokenCounts(Block):
    """Numbers of tokens: all the same, or log-normal."""

    median: Count
    """Half of them are below."""
    p95: Count | None = None
    """95% of them are below; all are the median when not given."""
    longest: Count | None = None
    """None is above; four times p95 when not given."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.p95 is not None and self.p95 < self.median:
            raise broken_rule("p95 is below the median", "p95", "median")
        if self.longest is not None and self.longest < (self.p95 or self.median):
            raise broken_rule("longest is below the rest", "longest", "p95")
        return self


class RequestKind(Block):
    """One class of requests in a mix."""

    name: Text
    """What reports call it."""
    weight: Annotated[Number, Field(gt=0)] = 1
    """Its share of the mix, next to the other classes' weights."""
    api: Literal["completions", "chat"] | None = None
    """Which endpoint is asked; by default the policy's `api`."""
    stream: OnOff = True
    """Whether answers are streamed."""
    prompts: Literal["words", "shared_prefix", "multi_turn", "file"]
    """Made of words, each its own; sharing most of their words; turns of talks; or from a file."""
    file: Text | None = None
    """JSON lines with `prompt` or `messages`, for prompts from a file."""
    prompt_tokens: TokenCounts | None = None
    """How long prompts are that are made, about a token a word."""
    turns: Count = 3
    """Questions of each talk, for multi_turn."""
    max_tokens: TokenCounts
    """Tokens asked for."""

    @model_validator(mode="after")
    def _has_prompts(self) -> Self:
        if (self.prompts == "file") != (self.file is not None):
            raise broken_rule("file is for prompts: file, which needs one", "file", "prompts")
        if (self.prompts == "file") == (self.prompt_tokens is not None):
            raise broken_rule(
                "prompt_tokens is for prompts that are made, which need it",
                "prompt_tokens",
                "prompts",
            )
        return self


Stretches = Annotated[tuple[Stretch, ...], Field(min_length=1)]
Kinds = Annotated[tuple[RequestKind, ...], Field(min_length=1)]


class Traffic(Block):
    """How a load differs from one rate and one prompt; each off unless the policy says."""

    profile: Annotated[Stretches | None, MayBeOff()] = None
    """Stretches of other rates, in place of rate and duration."""
    replay: Annotated[Replay | None, MayBeOff()] = None
    """A recorded trace in place of rate, duration, prompt and max_tokens."""
    workload: Annotated[Kinds | None, MayBeOff()] = None
    """A mix of requests in place of prompt, max_tokens and stream."""

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.profile and self.replay:
            raise broken_rule("a load is either stretched or replayed", "replay", "profile")
        if self.replay and self.workload:
            raise broken_rule("a trace brings its own requests", "workload", "replay")
        return self

    @property
    def profile_duration(self) -> timedelta:
        """How long the stretches last together."""
        return sum((stretch.for_ for stretch in self.profile or ()), timedelta())


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
