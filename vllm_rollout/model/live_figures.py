"""Figures of a deployment as it runs: what people watch during and after a rollout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class FigureName(StrEnum):
    """A figure, in the order in which they are shown."""

    READY = "ready"
    RESTARTS = "restarts"
    REQUEST_RATE = "request_rate"
    ERROR_RATE = "error_rate"
    LATENCY_P50 = "latency_p50"
    LATENCY_P95 = "latency_p95"
    LATENCY_P99 = "latency_p99"
    TTFT_P50 = "ttft_p50"
    TTFT_P95 = "ttft_p95"
    ITL_P50 = "itl_p50"
    ITL_P95 = "itl_p95"
    INPUT_TOKEN_RATE = "input_token_rate"  # noqa: S105 - no password
    OUTPUT_TOKEN_RATE = "output_token_rate"  # noqa: S105
    QUEUE = "queue"
    RUNNING = "running"
    KV_CACHE = "kv_cache"
    PREEMPTION_RATE = "preemption_rate"
    PREFIX_CACHE_HIT_RATE = "prefix_cache_hit_rate"
    GPU_USE = "gpu_use"
    GPU_MEMORY = "gpu_memory"
    CPU = "cpu"
    MEMORY = "memory"
    NETWORK_IN = "network_in"
    NETWORK_OUT = "network_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure, and where it comes from; either `value` or `unknown` is set.

    Units are SI units: seconds, bytes, requests, tokens or bytes per second, CPU cores; shares are
    fractions. `at` is the time of the oldest of the newest samples that it rests on, one of each
    server: no part of the figure is older.
    """

    value: float | None = None
    upper: float | None = None
    """Upper bound, where only a bucket of a histogram is known: `value` is the lower one then. It
    is infinite where the bucket has no upper bound.
    """
    of: float | None = None
    """The whole that `value` is a part of: replicas, or the GPUs' memory. None where that is not
    known, or where there is none.
    """
    source: str = ""
    """Name of the source, as people know it: "Prometheus", "/metrics of 2 pods"."""
    at: datetime | None = None
    unknown: str = ""
    """Why there is no value."""

    def __post_init__(self) -> None:
        if (self.value is None) is not bool(self.unknown):
            raise ValueError("a figure has a value, or says why it has none")

    @property
    def share(self) -> float | None:
        """The part of the whole that `value` is; None where one of them is not known."""
        return self.value / self.of if self.value is not None and self.of else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFigures:
    """The figures of a deployment, or of one side of a ramp: each name is there, in order.

    `side` is "canary" or "baseline" while a ramp is under way, else empty. `revision` is None where
    none is known.
    """

    environment: str
    revision: int | None
    side: str = ""
    figures: Mapping[FigureName, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaUsage:
    """Resources that one replica uses, as its platform knows it; None where it does not.

    `cpu_seconds` is the CPU time of its processes since they started, `cpu_cores` a use that the
    platform has measured itself. `gpu_use` is the share of each of its GPUs.
    """

    at: datetime
    cpu_seconds: float | None = None
    cpu_cores: float | None = None
    memory_bytes: float | None = None
    gpu_use: tuple[float, ...] = ()
    gpu_memory_bytes: float | None = None
    gpu_memory_total_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resources that replicas of a deployment use, by name, and why some are not known."""

    source: str
    replicas: Mapping[str, ReplicaUsage] = field(default_factory=dict)
    unknown: str = ""
    gpu_source: str = ""
    gpus_unknown: str = ""
    network_unknown: str = ""
