"""Result of a load run.

A `LoadPlan` goes to `loadtests/` and a `LoadResult` comes back. Latency runs from the *intended*
send time of the schedule, so a stall of the server or of the generator is never hidden
(coordinated omission). No request is dropped from the result: one that failed, timed out or was
never sent is there, by name.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from enum import StrEnum

from msgspec import Struct, structs

from vllm_rollout.model.load_figures import FailureKind
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.percentiles import check_percentile, percentile_of

WEB_PAGE = "text/html"
"""Begins the error of an answer that is a web page."""
NO_USAGE = "the stream has no usage, which stream_options.include_usage asks for"
"""Error of a streamed answer whose tokens cannot be counted."""

_MOST_KINDS = 3
_LONGEST_ERROR = 160

MOST_UNKNOWN = 0.01
"""Share of times that may be unknown in a figure; with more of them it is unknown itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItlSummary:
    """Inter-token gaps of a run's judged requests, in seconds; None where there was none.

    The generator stalled while `unknown` more were read: no figure is known if they are too many.
    """

    count: int = 0
    unknown: int = 0
    p50_seconds: float | None = None
    p95_seconds: float | None = None
    p99_seconds: float | None = None
    longest_seconds: float | None = None


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


class RequestRecord(
    Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True, gc=False
):
    """One request, as a line of the request log has it.

    Times are seconds since the start of the run, None where there is none or it is not known.
    `latency_seconds` and `ttft_seconds` are measured from `intended`.

    Raises:
        ValueError: an answer that never ended.
    """

    number: int = 0
    """Its place in the schedule."""
    intended: float
    sent: float | None = None
    first_token: float | None = None
    end: float | None = None
    outcome: RequestOutcome
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    request_class: str = ""
    """Name of the plan's class it is of; empty where all are alike."""
    cached: str = ""
    """What shows that its answer came from a cache; empty where nothing does."""
    stalled_seconds: float = 0.0
    """Above 0 where the generator stalled before it read the first token or the end: the time of
    the first token is not known then, if it was that, and `end` may be so much late."""

    def __post_init__(self) -> None:
        if self.end is None and self.outcome is RequestOutcome.OK:
            raise ValueError("an answer has an end")

    @property
    def ok(self) -> bool:
        """True if a whole, valid answer came."""
        return self.outcome is RequestOutcome.OK

    @property
    def failure_kind(self) -> str:
        """Its outcome, an HTTP error's with the status: `http_error 503`."""
        http = self.outcome is RequestOutcome.HTTP_ERROR
        return f"{self.outcome} {self.status}" if http else str(self.outcome)

    @property
    def latency_seconds(self) -> float | None:
        """From intended send to the last byte; None when it never ended."""
        return None if self.end is None else self.end - self.intended

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token, from intended send."""
        return None if self.first_token is None else self.first_token - self.intended

    @property
    def itl_seconds(self) -> float | None:
        """Inter-token latency, the mean after the first token; 0 for one token, None for none."""
        if self.completion_tokens < 2:
            return 0.0 if self.completion_tokens else None
        if self.first_token is None or self.end is None or self.stalled_seconds:
            return None
        return (self.end - self.first_token) / (self.completion_tokens - 1)

    @property
    def longest_ttft_seconds(self) -> float | None:
        """Time to first token; where a stall hides it, no longer than to the end."""
        stalled = self.first_token is None and self.stalled_seconds > 0
        return self.latency_seconds if stalled else self.ttft_seconds

    @property
    def longest_itl_seconds(self) -> float | None:
        """Inter-token latency; where a stall hides it, all the time it was under way is counted."""
        whole = self.latency_seconds
        if self.stalled_seconds and self.completion_tokens > 1 and whole is not None:
            return whole / (self.completion_tokens - 1)
        return self.itl_seconds

    @property
    def at_best(self) -> "RequestRecord":
        """The request as quick as it may have been, where the generator stalled: all at once."""
        if self.end is None or not self.stalled_seconds:
            return self
        quickest = self.end - self.stalled_seconds
        return structs.replace(
            self,
            first_token=self.intended if self.first_token is None else self.first_token,
            end=quickest,
            completion_tokens=min(self.completion_tokens, 1),
            stalled_seconds=0.0,
        )

    @property
    def lag_seconds(self) -> float | None:
        """Schedule lag: how late the generator sent it."""
        return None if self.sent is None else self.sent - self.intended


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFigures:
    """Figures of a load generator, None where one is not known.

    `lag_seconds` is how late requests left at P99, `cpu` what the busiest worker used of a core,
    `dropped` the requests of the schedule's `total` that were not sent; `workers` processes took
    `cpu_seconds_per_request` of CPU time. `rate_per_second` is the highest rate that was asked for.
    """

    lag_seconds: float | None
    cpu: float | None
    dropped: int
    total: int
    workers: int
    cpu_seconds_per_request: float | None
    rate_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """All judged requests of one run (warm-up left out), in order of intended time.

    `incomplete` is empty, or says why this result does not show the whole run (a worker died, the
    generator was killed, fewer arrivals than planned); no verdict may pass on an incomplete result.
    `stopped_after_seconds` of judged arrivals the load was stopped because everything was decided;
    infinite where it went to its end. `generator_cpu` is the CPU use of the busiest worker over the
    run, as a fraction of one core, `generator_seconds` that of all workers in CPU seconds; None
    where they were not measured. `gaps` are the times between tokens.
    """

    plan: LoadPlan
    started_at: float | None
    """Unix time of the schedule's zero; None where it never started."""
    requests: tuple[RequestRecord, ...]
    incomplete: str = ""
    unended: tuple[str, ...] = ()
    """The workers that did not end by themselves."""
    stopped_after_seconds: float = math.inf
    generator_cpu: float | None = None
    generator_seconds: float | None = None
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
    def offered_per_second(self) -> float | None:
        """Rate at which requests were really sent; None of no time."""
        sent, seconds = sum(r.sent is not None for r in self.requests), self.judged_seconds
        return sent / seconds if seconds else None

    @property
    def at_best(self) -> "LoadResult":
        """The load with every request as quick as it may have been."""
        return replace(self, requests=tuple(request.at_best for request in self.requests))

    @property
    def stalled(self) -> int:
        """Answers that have a time which is not known, because the generator stalled."""
        return sum(r.stalled_seconds > 0 for r in self.requests if r.ok)

    @property
    def unsent(self) -> int:
        """Requests that were due and not sent."""
        return sum(r.outcome is RequestOutcome.UNSENT for r in self.requests)

    @property
    def generator_seconds_per_request(self) -> float | None:
        """CPU time the generator took for each request it sent; None where that is not known."""
        rate, seconds = self.offered_per_second, self.generator_seconds
        if not rate or seconds is None:
            return None
        return seconds / (rate * (self.judged_seconds + self.plan.warmup_seconds))

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
        return tuple(r.end - r.intended for r in self.requests if r.ok and r.end is not None)

    @property
    def censored(self) -> int:
        """Requests slower than everything: failed, timed out or never sent."""
        return self.failures

    @property
    def latencies_in_order(self) -> tuple[float, ...]:
        """Latencies of all requests, in order of intended time; infinite without an answer."""
        return tuple(
            r.end - r.intended if r.ok and r.end is not None else math.inf for r in self.requests
        )

    @property
    def ttft_in_order(self) -> tuple[float | None, ...]:
        """Times to first token of all requests, in that order; None without an answer."""
        return tuple(r.longest_ttft_seconds if r.ok else None for r in self.requests)

    @property
    def itl_in_order(self) -> tuple[float | None, ...]:
        """Mean inter-token latencies of all requests, in that order; None without an answer."""
        return tuple(r.longest_itl_seconds if r.ok else None for r in self.requests)

    @property
    def failed_in_order(self) -> tuple[bool, ...]:
        """Which requests got no whole, valid answer, in order of intended time."""
        return tuple(not r.ok for r in self.requests)

    @property
    def failures_by_kind(self) -> dict[str, int]:
        """Failure count by `RequestRecord.failure_kind`, most first."""
        return dict(Counter(r.failure_kind for r in self.requests if not r.ok).most_common())

    @property
    def failure_kinds(self) -> tuple[FailureKind, ...]:
        """The most frequent kinds of failures, most first, each with its most frequent error."""
        errors: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
        for each in self.requests:
            if not each.ok:
                errors[each.failure_kind][each.status, " ".join(each.error.split())] += 1
        kinds = sorted(errors.items(), key=lambda item: -item[1].total())
        return tuple(
            FailureKind(
                kind=kind, count=found.total(), status=status, example=error[:_LONGEST_ERROR]
            )
            for kind, found in kinds[:_MOST_KINDS]
            for (status, error), _ in found.most_common(1)
        )

    def lag_percentile(self, percentile: float) -> float | None:
        """Schedule lag at `percentile` (nearest rank) over the requests sent; None of none.

        Raises:
            ValueError: a percentile not from 1 to 100, which is the latest.
        """
        if percentile != 100:
            check_percentile(percentile)
        lags = (r.lag_seconds for r in self.requests)
        return percentile_of(sorted(lag for lag in lags if lag is not None), percentile)
