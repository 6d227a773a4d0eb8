"""Result of a load run.

A `LoadPlan` goes to `loadtests/` and a `LoadResult` comes back. Latency runs from the *intended*
send time of the schedule, so a stall of the server or of the generator is never hidden
(coordinated omission). No request is dropped from the result: one that failed, timed out or was
never sent is there, by name.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.percentiles import percentile_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ItlSummary:
    """Inter-token gaps of a run's judged requests, in seconds; NaN where there was none."""

    count: int = 0
    p50_seconds: float = math.nan
    p95_seconds: float = math.nan
    p99_seconds: float = math.nan
    longest_seconds: float = math.nan


class RequestOutcome(StrEnum):
    """Outcome of one request."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    """An error status, or an error event inside a 200 stream (vLLM overloaded while streaming)."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, reset, DNS or TLS failure."""
    MALFORMED = "malformed"
    """A body that does not parse, or parses and is not a completion."""
    TRUNCATED = "truncated"
    """A stream that ended without a finish reason or without [DONE]."""
    UNSENT = "unsent"
    """Planned and not sent: the generator ended, fell behind, had no socket left, or never found an
    address for the server's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request. Times are seconds since the start of the run; a missing one is NaN.

    `latency_seconds` and `ttft_seconds` are measured from `intended`.
    """

    intended: float
    sent: float = math.nan
    first_token: float = math.nan
    end: float = math.nan
    outcome: RequestOutcome
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    request_class: str = ""
    """Name of the plan's class it is of; empty where all are alike."""
    cached: str = ""
    """What shows that its answer came from a cache; empty where nothing does."""

    @property
    def ok(self) -> bool:
        """True if a whole, valid answer came."""
        return self.outcome is RequestOutcome.OK

    @property
    def latency_seconds(self) -> float:
        """From intended send to the last byte; NaN when it never ended."""
        return self.end - self.intended

    @property
    def ttft_seconds(self) -> float:
        """Time to first token, from intended send."""
        return self.first_token - self.intended

    @property
    def itl_seconds(self) -> float:
        """Inter-token latency, the mean after the first token; 0 for one token, NaN for none."""
        if self.completion_tokens < 2:
            return 0.0 if self.completion_tokens else math.nan
        return (self.end - self.first_token) / (self.completion_tokens - 1)

    @property
    def lag_seconds(self) -> float:
        """Schedule lag: how late the generator sent it."""
        return self.sent - self.intended


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFigures:
    """Figures of a load generator, named as `judge.generator.generator_verdict` takes them."""

    lag_seconds: float
    cpu: float
    dropped: int
    total: int
    workers: int
    cpu_seconds_per_request: float
    rate_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """All judged requests of one run (warm-up left out), in order of intended time.

    `incomplete` is empty, or says why this result does not show the whole run (a worker died, the
    generator was killed, fewer arrivals than planned); no verdict may pass on an incomplete result.
    `stopped_after_seconds` of judged arrivals the load was stopped because everything was decided;
    infinite where it went to its end. `generator_cpu` is the CPU use of the busiest worker over the
    run, as a fraction of one core, `generator_seconds` that of all workers in CPU seconds; NaN
    where they were not measured. `gaps` are the times between tokens.
    """

    plan: LoadPlan
    started_at: float
    """Unix time of the schedule's zero."""
    requests: tuple[RequestRecord, ...]
    incomplete: str = ""
    unended: tuple[str, ...] = ()
    """The workers that did not end by themselves."""
    stopped_after_seconds: float = math.inf
    generator_cpu: float = math.nan
    generator_seconds: float = math.nan
    gaps: ItlSummary = field(default_factory=ItlSummary)

    @property
    def total(self) -> int:
        """Number of judged requests, whatever became of them."""
        return len(self.requests)

    @property
    def judged_seconds(self) -> float:
        """Length of the judged part of the schedule."""
        return min(self.plan.duration_seconds, self.stopped_after_seconds)

    @property
    def offered_per_second(self) -> float:
        """Rate at which requests were really sent; NaN of no time."""
        sent, seconds = sum(not math.isnan(r.sent) for r in self.requests), self.judged_seconds
        return sent / seconds if seconds else math.nan

    @property
    def unsent(self) -> int:
        """Requests that were due and not sent."""
        return sum(r.outcome is RequestOutcome.UNSENT for r in self.requests)

    @property
    def generator_seconds_per_request(self) -> float:
        """CPU time the generator took for each request it sent; NaN where that is not known."""
        sent = self.offered_per_second * (self.judged_seconds + self.plan.warmup_seconds)
        return self.generator_seconds / sent if sent > 0 else math.nan

    @property
    def generator(self) -> GeneratorFigures:
        """Figures of the load generator."""
        return GeneratorFigures(
            lag_seconds=self.lag_percentile(99),
            cpu=self.generator_cpu,
            dropped=self.unsent,
            total=self.total,
            workers=self.plan.workers,
            cpu_seconds_per_request=self.generator_seconds_per_request,
            rate_per_second=self.plan.peak_rate_per_second,
        )

    @property
    def failures(self) -> int:
        """Requests without a whole, valid answer."""
        return sum(not r.ok for r in self.requests)

    @property
    def latencies_seconds(self) -> tuple[float, ...]:
        """Latencies of the requests that were answered; the others are `censored`."""
        return tuple(r.latency_seconds for r in self.requests if r.ok)

    @property
    def censored(self) -> int:
        """Requests slower than everything: failed, timed out or never sent."""
        return self.failures

    @property
    def latencies_in_order(self) -> tuple[float, ...]:
        """Latencies of all requests, in order of intended time; infinite without an answer."""
        return tuple(r.latency_seconds if r.ok else math.inf for r in self.requests)

    @property
    def ttft_in_order(self) -> tuple[float, ...]:
        """Times to first token of all requests, in that order; NaN without an answer."""
        return tuple(r.ttft_seconds if r.ok else math.nan for r in self.requests)

    @property
    def itl_in_order(self) -> tuple[float, ...]:
        """Mean inter-token latencies of all requests, in that order; NaN without an answer."""
        return tuple(r.itl_seconds if r.ok else math.nan for r in self.requests)

    @property
    def failed_in_order(self) -> tuple[bool, ...]:
        """Which requests got no whole, valid answer, in order of intended time."""
        return tuple(not r.ok for r in self.requests)

    @property
    def failures_by_kind(self) -> dict[str, int]:
        """Failure count by outcome, HTTP errors split by status (`http_error 503`), most first."""
        counts: dict[str, int] = {}
        for request in self.requests:
            if not request.ok:
                kind = str(request.outcome)
                if request.outcome is RequestOutcome.HTTP_ERROR:
                    kind += f" {request.status}"
                counts[kind] = counts.get(kind, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def lag_percentile(self, percentile: float) -> float:
        """Schedule lag at `percentile` (nearest rank) over the requests sent; NaN when none was."""
        lags = sorted(r.lag_seconds for r in self.requests if not math.isnan(r.sent))
        return percentile_of(lags, percentile)
