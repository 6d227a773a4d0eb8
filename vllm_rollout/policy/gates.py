"""Gates of an environment, the load they judge, and the soak."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from vllm_rollout.model.live_figures import FigureName
from vllm_rollout.model.units import format_duration
from vllm_rollout.policy.conditions import Preflight, SignOff, Soak
from vllm_rollout.policy.fields import (
    Block,
    Count,
    CountOrZero,
    Duration,
    Limit,
    MayBeOff,
    Percentile,
    Rate,
    ServerUrl,
    Span,
    Switch,
    Text,
    broken_rule,
)
from vllm_rollout.policy.load_profile import EarlyStop, LoadOutage, Traffic
from vllm_rollout.policy.outputs import Outputs
from vllm_rollout.policy.platforms import Cluster
from vllm_rollout.policy.prometheus import LiveMetrics


class Pods(Block):
    """Every pod (or process) is Running and Ready."""


class Health(Block):
    """`/health` answers 200 and the model gives a token."""

    timeout: Span
    """How long an answer may take."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()


class Inference(Block):
    """A sample inference completes."""

    prompt: Text
    """What is sent."""
    max_tokens: Count
    """Tokens asked for."""
    timeout: Span
    """How long the whole answer may take."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()


class ResponseTime(Block):
    """Each of a few requests, sent one after the other, answers within the limit."""

    limit: Span
    """The longest an answer may take."""
    requests: Count
    """How many are sent."""

    @property
    def limit_seconds(self) -> float:
        """`limit` in seconds."""
        return self.limit.total_seconds()


class Latency(Block):
    """A percentile of latency under load is below the limit."""

    percentile: Percentile
    """Which percentile, for example 95."""
    limit: Span
    """What it must stay below."""

    @property
    def limit_seconds(self) -> float:
        """`limit` in seconds."""
        return self.limit.total_seconds()


class ErrorRate(Block):
    """The share of failed requests under load is below the limit."""

    limit: Limit
    """What it must stay below, for example 0.1%."""


class Goodput(Block):
    """Enough requests under load meet all of these limits at once."""

    target: Limit
    """Share of the requests that must be above this, for example 95%."""
    ttft: Span | None = None
    """What time to first token must stay below."""
    itl: Span | None = None
    """What the time from token to token must stay below, as the mean of a request."""
    latency: Span | None = None
    """What the time to the end of the answer must stay below."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.ttft is None and self.itl is None and self.latency is None:
            raise broken_rule("give at least one of ttft, itl and latency", "target")
        if self.target >= 1:
            raise broken_rule("no share is above 100%: give a lower target", "target")
        return self

    @property
    def ttft_seconds(self) -> float | None:
        """`ttft` in seconds."""
        return None if self.ttft is None else self.ttft.total_seconds()

    @property
    def itl_seconds(self) -> float | None:
        """`itl` in seconds."""
        return None if self.itl is None else self.itl.total_seconds()

    @property
    def latency_seconds(self) -> float | None:
        """`latency` in seconds."""
        return None if self.latency is None else self.latency.total_seconds()


class LoadCapacity(Block):
    """The deployment serves the traffic expected of production."""

    expected_rate: Rate
    """Requests that arrive, for example 10/s."""
    unserved: Limit
    """Share of them that may fail or go unanswered."""


class Smoke(Block):
    """A completion comes through the router, with a bearer key."""

    url: Annotated[ServerUrl | None, MayBeOff()]
    """The router's URL, without a path to the API; off means where the platform itself routes."""
    prompt: Text
    """What is sent."""
    max_tokens: Count
    """Tokens asked for."""
    timeout: Span
    """How long the whole answer may take."""

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()


class ResourceUse(Block):
    """Each reading of the used share of a resource is below the limit."""

    limit: Limit
    """What each reading must stay below."""


class Queue(Block):
    """At each reading fewer requests than the limit wait in the servers."""

    limit: Count
    """What each reading must stay below, of all servers together."""


class Gates(Block):
    """The gates of an environment. One that is off, or named nowhere, is not run (None)."""

    pods: Annotated[Pods | None, MayBeOff()] = None
    """Pods Running and Ready."""
    health: Annotated[Health | None, MayBeOff()] = None
    """Health endpoint returns 200, and a token comes."""
    inference: Annotated[Inference | None, MayBeOff()] = None
    """Sample inference completes."""
    response_time: Annotated[ResponseTime | None, MayBeOff()] = None
    """Response time of single requests."""
    outputs: Annotated[Outputs | None, MayBeOff()] = None
    """Sample outputs for QA."""
    latency: Annotated[Latency | None, MayBeOff()] = None
    """A percentile of latency under load."""
    error_rate: Annotated[ErrorRate | None, MayBeOff()] = None
    """Share of failed requests under load."""
    goodput: Annotated[Goodput | None, MayBeOff()] = None
    """Share of requests that meet every latency limit, under load."""
    load_capacity: Annotated[LoadCapacity | None, MayBeOff()] = None
    """Handles the traffic expected of production."""
    smoke: Annotated[Smoke | None, MayBeOff()] = None
    """A completion through the router."""
    live_metrics: Annotated[LiveMetrics | None, MayBeOff()] = None
    """Metrics within SLO, by Prometheus."""
    gpu_memory: Annotated[ResourceUse | None, MayBeOff()] = None
    """GPU memory in use, of all GPUs together."""
    kv_cache: Annotated[ResourceUse | None, MayBeOff()] = None
    """KV cache in use."""
    queue: Annotated[Queue | None, MayBeOff()] = None
    """Requests that wait in the servers."""

    @property
    def resources(self) -> "dict[FigureName, ResourceUse | Queue]":
        """The gates on resources that are on."""
        every = {
            FigureName.GPU_MEMORY: self.gpu_memory,
            FigureName.KV_CACHE: self.kv_cache,
            FigureName.QUEUE: self.queue,
        }
        return {name: gate for name, gate in every.items() if gate is not None}

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the gates that are run, cheap ones first."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def on_load(self) -> "tuple[Latency | ErrorRate | Goodput | LoadCapacity, ...]":
        """Those that judge a load, in the order in which they are asked."""
        gates = (self.latency, self.error_rate, self.goodput, self.load_capacity)
        return tuple(gate for gate in gates if gate is not None)


class Load(Block):
    """The load that latency, error rate and load capacity are judged by."""

    rate: Rate
    """Arrivals, whether or not earlier requests were answered, for example 10/s."""
    duration: Span
    """How long arrivals are judged."""
    arrivals: Literal["poisson", "constant"]
    """How they are spaced."""
    timeout: Span
    """A request unanswered for longer counts as failed."""
    warmup: Duration
    """Sent before `duration` begins, and not judged."""
    prompt: Text
    """What is sent."""
    max_tokens: Count
    """Tokens asked for."""
    stream: Switch
    """Whether answers are streamed, which is what time to first token is measured on."""
    workers: Count
    """Load generator processes, or pods."""
    where: Literal["here", "cluster"]
    """Whether load is made by processes on this machine or by pods in the deployment's cluster."""
    max_lag: Span
    """Requests that leave later than this after their time (P99) leave the run without verdict."""
    max_cpu: Limit
    """A generator process that uses more than this of a core leaves the run without verdict."""
    early_stop: Annotated[EarlyStop | None, MayBeOff()]
    """When the load ends before its time; off: never."""
    outage: Annotated[LoadOutage | None, MayBeOff()]
    """Failures in a row that are an outage; off: they are judged as a rate."""
    keep_requests: Switch
    """Whether a line for each request is kept beside the report."""
    traffic: Traffic
    """Changing rates, a recorded trace, or a mix of requests."""
    seed: CountOrZero
    """Seed of the arrival schedule: the same seed sends at the same times."""

    @property
    def duration_seconds(self) -> float:
        """`duration` in seconds."""
        return self.duration.total_seconds()

    @property
    def timeout_seconds(self) -> float:
        """`timeout` in seconds."""
        return self.timeout.total_seconds()

    @property
    def warmup_seconds(self) -> float:
        """`warmup` in seconds."""
        return self.warmup.total_seconds()

    @property
    def max_lag_seconds(self) -> float:
        """`max_lag` in seconds."""
        return self.max_lag.total_seconds()


class Environment(Block):
    """One environment, with what it inherited already in it."""

    replicas: Count
    """Replicas of a complete release: its capacity."""
    kubernetes: Annotated[Cluster | None, MayBeOff()] = None
    """Its own cluster or namespace; not inherited."""
    preflight: Annotated[Preflight | None, MayBeOff()] = None
    """What is looked at before a build is deployed here; inherited from the environment before."""
    gates: Gates
    """What must hold here; inherited from the environment before."""
    load: Load
    """How load is made here; inherited from the environment before."""
    soak: Annotated[Soak | None, MayBeOff()] = None
    """Time to spend here before the next environment; not inherited."""
    sign_off: Annotated[SignOff | None, MayBeOff()] = None
    """A person's approval of the evidence before the next environment; not inherited."""

    @model_validator(mode="after")
    def _streams_what_is_timed_by_token(self) -> Self:
        goodput = self.gates.goodput
        if goodput and (goodput.ttft or goodput.itl) and not self.load.stream:
            raise broken_rule(
                "gates.goodput times tokens (ttft, itl), and load.stream is off: only streamed "
                "answers show when each token came",
                "load.stream",
                "gates.goodput.ttft",
                "gates.goodput.itl",
            )
        return self

    @model_validator(mode="after")
    def _waits_for_the_limit(self) -> Self:
        latency = self.gates.latency
        if latency and self.load.timeout <= latency.limit:
            raise broken_rule(
                f"load.timeout ({format_duration(self.load.timeout)}) must be longer than "
                f"gates.latency.limit ({format_duration(latency.limit)}): a request given up "
                "earlier cannot be distinguished from one that would have met it",
                "load.timeout",
                "gates.latency.limit",
            )
        return self
