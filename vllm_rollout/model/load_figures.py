"""Figures of a load run, as evidence keeps them and reports show them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyBin:
    """`count` answered requests with latency above the bin before and at most `upper_seconds`."""

    upper_seconds: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKind:
    """Failed requests that are alike: `http_error 429`, how many, the HTTP status (0 without one),
    and the error of the most of them.
    """

    kind: str
    count: int
    status: int = 0
    example: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMoment:
    """One slice of a load run, by intended send time, `at_seconds` after its start."""

    at_seconds: float
    requests: int
    failures: int
    p50_seconds: float | None
    p95_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    """The requests of one class of a mix. ITL (time between tokens) is each request's mean."""

    name: str
    total: int
    failures: int
    p50_seconds: float | None
    p95_seconds: float | None
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    itl_p50_seconds: float | None
    itl_p95_seconds: float | None
    output_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """Figures of a load run for a report; verdicts are reached on the exact records instead.

    `itl_…` are over every time between two tokens. `generator_cpu` is what the busiest of
    `workers` processes used of a core, `unsent` the requests that were due and not sent.
    """

    rate_per_second: float
    duration_seconds: float
    total: int
    failures: int
    failures_by_kind: dict[str, int]
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    ttft_p50_seconds: float | None
    ttft_p95_seconds: float | None
    output_tokens_per_second: float
    lag_p99_seconds: float | None
    histogram: tuple[LatencyBin, ...]
    timeline: tuple[LoadMoment, ...]
    incomplete: str = ""
    stopped: str = ""
    """Why it was stopped before its end, and after how many requests; empty where it was not."""
    offered_per_second: float | None = None
    itl_p50_seconds: float | None = None
    itl_p95_seconds: float | None = None
    itl_p99_seconds: float | None = None
    generator_cpu: float | None = None
    workers: int = 1
    unsent: int = 0
    classes: tuple[ClassSummary, ...] = ()
    """By class, where the policy asks for a mix."""
    failure_kinds: tuple[FailureKind, ...] = ()
    """The most frequent of `failures_by_kind`, with an example of each."""
    requests_file: str = ""
    """Name of the file beside the evidence with a line for each request; empty if not kept."""
