"""The dials: everything about the simulator that can be turned, before and while it runs."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from vllm_rollout.simulator.distributions import (
    Constant,
    Distribution,
    Lognormal,
    parse_distribution,
)

Times = Annotated[Distribution, BeforeValidator(parse_distribution), PlainSerializer(str)]
Share = Annotated[float, Field(ge=0, le=1)]


class DialError(ValueError):
    """A dial that does not exist or a value it cannot take; the message names both."""


class Dials(BaseModel):
    """Settings of a simulator. Names without a unit are counts, shares or switches."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    seed: int = Field(1, description="fixes every draw: times, outcomes, texts")
    ttft_seconds: Times = Field(
        Lognormal(0.05, 0.25),
        description="time to first token: seconds, or lognormal|pareto|bimodal(median=…, …)",
    )
    inter_token_seconds: Times = Field(
        Constant(0.01), description="time from a token to the next, written as --ttft-seconds"
    )
    max_num_seqs: int = Field(256, ge=1, description="sequences that run at once; the rest wait")
    max_num_queued_reqs: int | None = Field(
        None, ge=1, description="sequences that may wait before requests are answered 503"
    )
    max_model_len: int = Field(4096, ge=2, description="prompt and output tokens together")
    eos_after: int | None = Field(
        None, ge=1, description="tokens after which the model ends by itself; default never"
    )
    output: str | None = Field(
        None, description="text of every answer, repeated to the length asked for"
    )
    error_rate: Share = Field(0.0, description="share of requests answered with --error-status")
    error_status: int = Field(500, ge=400, le=599, description="HTTP status of injected errors")
    truncated_rate: Share = Field(0.0, description="share of answers cut off half way")
    malformed_rate: Share = Field(0.0, description="share of answers with broken JSON")
    hang: bool = Field(False, description="no token ever comes, while /health answers 200")
    dead: bool = Field(False, description="engine dead: /health 503, completions 500")
    stall_seconds: float = Field(0.0, ge=0, description="freeze everything for this long")
    stall_every_seconds: float = Field(10.0, gt=0, description="period of the freezes")
    crash_after: int | None = Field(
        None, ge=0, description="exit with code 1 at the next request after this many"
    )

    @model_validator(mode="after")
    def _stall_ends(self) -> Self:
        if self.stall_seconds >= self.stall_every_seconds:
            raise ValueError("stall_seconds must be less than stall_every_seconds")
        return self

    def turned(self, changes: Mapping[str, Any]) -> "Dials":
        """These dials with `changes` made; values may be text, as on a command line.

        Raises:
            DialError: a name or value is wrong; nothing is changed.
        """
        try:
            return Dials.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise DialError("; ".join(_text(dict(one)) for one in error.errors())) from None


def _text(error: dict[str, Any]) -> str:
    name = ".".join(map(str, error["loc"])) or "dials"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such dial"
    return f"{name}: {error['msg']}, got {str(error['input'])[:80]!r}"
