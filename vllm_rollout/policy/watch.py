"""The watch over production, and the triggers that roll it back."""

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vllm_rollout.model.live_figures import FigureName
from vllm_rollout.model.units import format_duration
from vllm_rollout.policy.fields import (
    Block,
    Count,
    CountOrZero,
    Duration,
    Limit,
    MayBeOff,
    Percentile,
    Span,
    broken_rule,
)


def _gate(name: str) -> str:
    if not name.isidentifier():
        raise broken_rule(f"{name!r} is not the name of a gate")
    return name


GateName = Annotated[str, AfterValidator(_gate)]
"""Name of one of the suite's gates, or of a team's own: of its file, without `test_`."""
Choice = Literal["keep", "roll_back"]
"""What becomes of a build after it was promoted."""


class WatchSlo(Block):
    """SLOs right after promotion."""

    within: Span
    """How long after promotion it is judged."""
    percentile: Percentile
    """Percentile of latency."""
    limit: Span
    """What the percentile must stay below."""
    error_rate: Limit
    """What the share of failed requests must stay below."""

    @property
    def within_seconds(self) -> float:
        """`within` in seconds."""
        return self.within.total_seconds()

    @property
    def limit_seconds(self) -> float:
        """`limit` in seconds."""
        return self.limit.total_seconds()


class ErrorSpike(Block):
    """A burst of errors soon after promotion."""

    within: Span
    """How long after promotion it is looked for."""
    rate: Limit
    """Share of failed requests above which it is a spike."""
    for_: Span = Field(alias="for")
    """How long the share must stay above."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.for_ > self.within:
            raise broken_rule("for is longer than within", "for", "within")
        return self

    @property
    def within_seconds(self) -> float:
        """`within` in seconds."""
        return self.within.total_seconds()

    @property
    def for_seconds(self) -> float:
        """`for` in seconds."""
        return self.for_.total_seconds()


class Watch(Block):
    """The watch over production after each step and after promotion."""

    duration: Span
    """How long production is watched after promotion."""
    interval: Span
    """Time between observations."""
    probes: Count
    """Inference requests per observation."""
    probe_timeout: Span
    """How long a probe may take."""
    slo: WatchSlo
    """Metrics within SLO."""
    error_spike: ErrorSpike
    """No error spike."""

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        for name, needed in (
            ("interval", self.interval),
            ("slo.within", self.slo.within),
            ("error_spike.within", self.error_spike.within),
        ):
            if needed > self.duration:
                raise broken_rule(
                    f"{name} ({format_duration(needed)}) is longer than the watch's duration "
                    f"({format_duration(self.duration)})",
                    name,
                    "duration",
                )
        return self

    @property
    def duration_seconds(self) -> float:
        """`duration` in seconds."""
        return self.duration.total_seconds()

    @property
    def interval_seconds(self) -> float:
        """`interval` in seconds."""
        return self.interval.total_seconds()

    @property
    def probe_timeout_seconds(self) -> float:
        """`probe_timeout` in seconds."""
        return self.probe_timeout.total_seconds()


class Inconclusive(Block):
    """Consequence of an inconclusive gate of production, once production runs the build."""

    ask_every: Span
    """How long production is watched before the gates that are inconclusive are asked again."""
    deadline: Duration
    """For how long they are; then what is still open is kept or rolled back."""
    seen: Choice
    """Where what a gate measured is against the build, though too little to fail it."""
    unseen: Choice
    """Where it measured nothing, or nothing against the build."""
    gates: dict[GateName, Choice]
    """The same for single gates, whatever they saw."""

    @property
    def asks_again(self) -> int:
        """How often gates may be asked again before the deadline."""
        return math.ceil(self.deadline / self.ask_every)

    def keeps(self, gate: str, *, seen: bool) -> bool:
        """Return whether a build is kept of which `gate` could not know."""
        return self.gates.get(gate, self.seen if seen else self.unseen) == "keep"


class ShareTrigger(Block):
    """Fires when the share of failed requests stays above a limit."""

    above: Limit
    """The share; at 100% the trigger asks for all requests to fail."""
    for_: Duration = Field(alias="for")
    """How long."""

    @property
    def for_seconds(self) -> float:
        """`for` in seconds."""
        return self.for_.total_seconds()


class LatencyTrigger(Block):
    """Fires when a percentile of latency stays above a limit."""

    percentile: Percentile
    """Which percentile."""
    above: Span
    """The limit."""
    for_: Duration = Field(alias="for")
    """How long."""

    @property
    def above_seconds(self) -> float:
        """`above` in seconds."""
        return self.above.total_seconds()

    @property
    def for_seconds(self) -> float:
        """`for` in seconds."""
        return self.for_.total_seconds()


class CrashLoop(Block):
    """Fires when every pod of the release fails."""

    restarts: Count
    """Restarts of a pod that count as failing."""


class HealthTrigger(Block):
    """Fires when health checks fail in a row."""

    consecutive: Count
    """It fires at more failures in a row than this."""


def _below_all(share: float) -> float:
    if share >= 1:
        raise broken_rule("no share is above 100%: give a lower limit")
    return share


class ResourceTrigger(Block):
    """Fires when the used share of a resource stays above a limit."""

    above: Annotated[Limit, AfterValidator(_below_all)]
    """The share."""
    for_: Span = Field(alias="for")
    """How long."""

    @property
    def for_seconds(self) -> float:
        """`for` in seconds."""
        return self.for_.total_seconds()


class QueueTrigger(Block):
    """Fires when more requests than a limit keep waiting in the servers."""

    above: CountOrZero
    """The limit, of all servers together."""
    for_: Span = Field(alias="for")
    """How long."""

    @property
    def for_seconds(self) -> float:
        """`for` in seconds."""
        return self.for_.total_seconds()


class Triggers(Block):
    """Rollback triggers: each leads to immediate rollback."""

    error_rate: ShareTrigger
    """Error rate spike."""
    latency: LatencyTrigger
    """Latency percentile too high."""
    outage: ShareTrigger
    """Complete outage."""
    crash_loop: CrashLoop
    """Pod crash loop."""
    health: HealthTrigger
    """Health check failures."""
    gpu_memory: Annotated[ResourceTrigger | None, MayBeOff()]
    """GPU memory in use, of all GPUs together."""
    kv_cache: Annotated[ResourceTrigger | None, MayBeOff()]
    """KV cache in use."""
    queue: Annotated[QueueTrigger | None, MayBeOff()]
    """Requests that wait in the servers."""
    window: Span
    """Time whose observations make up one rate or percentile."""
    max_gap: Span
    """Longer without data, and the watch says that it cannot observe."""

    @property
    def resources(self) -> dict[FigureName, ResourceTrigger | QueueTrigger]:
        """The triggers on resources that are on."""
        every = {
            FigureName.GPU_MEMORY: self.gpu_memory,
            FigureName.KV_CACHE: self.kv_cache,
            FigureName.QUEUE: self.queue,
        }
        return {name: rule for name, rule in every.items() if rule is not None}

    @property
    def window_seconds(self) -> float:
        """`window` in seconds."""
        return self.window.total_seconds()

    @property
    def max_gap_seconds(self) -> float:
        """`max_gap` in seconds."""
        return self.max_gap.total_seconds()
