"""What a load run is asked for and what it found.

A `LoadPlan` goes to `loadtests/` and a `LoadResult` comes back. Latency runs from the *intended*
send time of the schedule, so a stall of the server or of the generator is never hidden
(coordinated omission). No request is dropped from the result: one that failed, timed out or was
never sent is there, by name.
"""

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from vllm_rollout.errors import UsageError

ARRIVALS = ("constant", "poisson")
"""The laws by which requests may arrive (`vllm_rollout.observe.arrivals`)."""


class RequestOutcome(StrEnum):
    """How one request ended."""

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
    """Planned, and the generator has no record of it: it ended or fell behind before sending it."""


def _is_base_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        # Reading the port checks it. A password has no place where a URL is shown.
        plain = url.port != 0 and url.username is None and not url.query and not url.fragment
    except ValueError:
        return False
    return plain and bool(url.hostname) and url.scheme in ("http", "https") and _is_graphic(text)


def _is_graphic(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """An open-loop load: `rate_per_second` arrivals for `warmup_seconds` + `duration_seconds`.

    `timeout_seconds` is a total deadline per request, from its intended send time to the last byte.

    Raises:
        UsageError: a value no load can be made of; the message names it.
    """

    base_url: str
    model: str
    rate_per_second: float
    duration_seconds: float
    warmup_seconds: float = 0.0
    arrivals: str = "poisson"
    timeout_seconds: float = 30.0
    prompt: str = "Hello"
    max_tokens: int = 64
    stream: bool = True
    workers: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        sound = {
            "base_url is http:// or https://, a host, and at most a port and a path": _is_base_url(
                self.base_url
            ),
            "model is not empty": bool(self.model),
            "rate_per_second is above 0": 0 < self.rate_per_second < math.inf,
            "duration_seconds is above 0": self.duration_seconds > 0,
            "warmup_seconds is 0 or more": 0 <= self.warmup_seconds < math.inf,
            "timeout_seconds is above 0": 0 < self.timeout_seconds < math.inf,
            "max_tokens is 1 or more": self.max_tokens >= 1,
            "workers is 1 or more": self.workers >= 1,
            f"arrivals is {' or '.join(ARRIVALS)}": self.arrivals in ARRIVALS,
        }
        broken = [rule for rule, holds in sound.items() if not holds]
        if broken:
            raise UsageError(
                f"not a load plan: it must hold that {'; that '.join(broken)}",
                remedy="Correct the policy's `load` block or the option.",
            )

    @property
    def total_seconds(self) -> float:
        """Length of the schedule, warm-up included."""
        return self.warmup_seconds + self.duration_seconds

    @property
    def expected_requests(self) -> float:
        """Mean number of judged requests the plan makes."""
        return self.rate_per_second * self.duration_seconds

    def to_json(self) -> str:
        """The plan as a JSON object, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LoadPlan":
        """The plan that `to_json` wrote.

        Raises:
            UsageError: the text is no plan.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"not a load plan: {error}", remedy="Write it with LoadPlan.to_json()."
            ) from error


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

    @property
    def ok(self) -> bool:
        """Whether a whole, valid answer came."""
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
        """How late the generator sent it: schedule lag."""
        return self.sent - self.intended


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """All judged requests of one run (warm-up left out), in order of intended time.

    `incomplete` is empty, or says why this result does not show the whole run (a worker died, the
    generator was killed, fewer arrivals than planned); no verdict may pass on an incomplete result.
    `generator_cpu` is the highest CPU use seen of any worker, as a fraction of one core; NaN when
    it was not measured.
    """

    plan: LoadPlan
    started_at: float
    """Unix time of the schedule's zero."""
    requests: tuple[RequestRecord, ...]
    incomplete: str = ""
    generator_cpu: float = math.nan

    @property
    def total(self) -> int:
        """Number of judged requests, whatever became of them."""
        return len(self.requests)

    @property
    def offered_per_second(self) -> float:
        """Rate at which requests were really sent."""
        return sum(not math.isnan(r.sent) for r in self.requests) / self.plan.duration_seconds

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
        if not lags:
            return math.nan
        return lags[max(0, math.ceil(len(lags) * percentile / 100) - 1)]
