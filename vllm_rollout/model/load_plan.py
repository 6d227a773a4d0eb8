"""Plan of a load run: when requests are sent, and the content of each."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from urllib.parse import urlsplit

from vllm_rollout.model.errors import UsageError

Api = Literal["completions", "chat"]
PATHS: Mapping[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
"""The path of each API that a request may be for."""

ARRIVALS = ("constant", "poisson", "closed")
"""How requests may arrive: evenly spaced, at random, or each user's after his last was answered."""

PROMPTS = ("text", "words", "shared_prefix", "multi_turn", "file")
"""Where a class's prompts come from (`vllm_rollout.load.workload`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSegment:
    """A stretch of a schedule: the rate goes from `start` to `end`, in requests per second."""

    seconds: float
    start: float
    end: float

    @property
    def requests(self) -> float:
        """Mean number of arrivals."""
        return self.seconds * (self.start + self.end) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """One recorded request: when it came, in seconds, and how many tokens went in and out."""

    at: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Numbers of tokens: log-normal of this median and 95th percentile, at most `longest`.

    All are the median where `p95` is it too.
    """

    median: int
    p95: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """Requests of one kind, `weight` of the sum of all weights.

    `prompts` are the texts, or lists of chat messages, of the kinds `text` and `file`; of the
    others they are made: about `prompt_tokens` words, `turns` of a conversation. `output` says how
    many tokens are asked for (`max_tokens`).
    """

    name: str
    weight: float = 1.0
    api: str = "completions"
    stream: bool = True
    kind: str = "text"
    prompts: tuple[str | tuple[dict[str, str], ...], ...] = ()
    prompt_tokens: Lengths | None = None
    output: Lengths
    turns: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """An open-loop load: arrivals for `warmup_seconds` + `duration_seconds`.

    They come at `rate_per_second`, or, where there is a `shape` or a `trace`, as that says;
    `arrivals` `closed` has `users` that wait for each answer instead. Every request asks for
    `max_tokens` of the one `prompt`, or what `classes` say. `timeout_seconds` is a total deadline
    per request, from its intended send time to the last byte. `api` is the endpoint of requests
    that are of no class. `nonce` makes the requests of a run unlike those of any other.

    Raises:
        UsageError: a value no load can be made of; the message names it.
    """

    base_url: str
    model: str
    rate_per_second: float
    duration_seconds: float
    warmup_seconds: float = 0.0
    arrivals: str = "poisson"
    users: int = 0
    shape: tuple[RateSegment, ...] = ()
    trace: tuple[TraceEntry, ...] = ()
    timeout_seconds: float = 30.0
    api: str = "completions"
    prompt: str = "Hello"
    max_tokens: int = 64
    stream: bool = True
    classes: tuple[RequestClass, ...] = ()
    workers: int = 1
    seed: int = 1
    nonce: str = ""

    def __post_init__(self) -> None:
        closed = self.arrivals == "closed"
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
            "api is completions or chat": self.api in PATHS,
            "users is 1 or more with closed arrivals, else 0": (self.users >= 1) is closed,
            "a shape has lengths and rates, some above 0": not self.shape
            or (
                all(s.seconds > 0 and s.start >= 0 and s.end >= 0 for s in self.shape)
                and 0 < sum(s.requests for s in self.shape) < math.inf
            ),
            "a trace is in order of time and asks for tokens": _is_trace(self.trace),
            "there is at most one of shape, trace and closed arrivals": sum(
                map(bool, (self.shape, self.trace, closed))
            )
            <= 1,
            "classes have names of their own, weights, and prompts where they make none": (
                _are_classes(self.classes)
            ),
        }
        broken = [rule for rule, holds in sound.items() if not holds]
        if broken:
            raise UsageError(
                f"not a load plan: it must hold that {'; that '.join(broken)}",
                remedy="Correct the policy's `load` block or the option.",
            )

    @property
    def closed(self) -> bool:
        """True if users wait for each answer: requests that a stall holds back are never sent."""
        return self.arrivals == "closed"

    @property
    def total_seconds(self) -> float:
        """Length of the schedule, warm-up included."""
        return self.warmup_seconds + self.duration_seconds

    @property
    def expected_requests(self) -> float | None:
        """Mean number of judged requests the plan makes; None where users wait for answers."""
        if self.closed:
            return None
        if self.trace:
            return float(len(self.trace))
        if self.shape:
            return sum(segment.requests for segment in self.shape)
        return self.rate_per_second * self.duration_seconds

    @property
    def mean_rate_per_second(self) -> float | None:
        """Mean rate of the judged requests; None where users wait for answers."""
        if not (self.shape or self.trace or self.closed):
            return self.rate_per_second
        expected = self.expected_requests
        return None if expected is None else expected / self.duration_seconds

    @property
    def peak_rate_per_second(self) -> float | None:
        """The highest rate a shape asks for; of any other plan the mean."""
        return max(
            (max(segment.start, segment.end) for segment in self.shape),
            default=self.mean_rate_per_second,
        )

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
            fields = json.loads(text)
            fields["shape"] = tuple(RateSegment(**each) for each in fields["shape"])
            fields["trace"] = tuple(TraceEntry(**each) for each in fields["trace"])
            fields["classes"] = tuple(map(_class_from, fields["classes"]))
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"not a load plan: {error}", remedy="Write it with LoadPlan.to_json()."
            ) from error


def shaped_seconds(shape: Sequence[RateSegment]) -> float:
    """Return the length of a shape."""
    return sum(segment.seconds for segment in shape)


def _class_from(fields: dict[str, object]) -> RequestClass:
    lengths = {
        name: Lengths(**fields[name]) if fields[name] else None  # type: ignore[arg-type]
        for name in ("prompt_tokens", "output")
    }
    prompts = tuple(
        text if isinstance(text, str) else tuple(text)
        for text in fields["prompts"]  # type: ignore[attr-defined]
    )
    return RequestClass(**{**fields, **lengths, "prompts": prompts})  # type: ignore[arg-type]


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


def _is_trace(trace: Sequence[TraceEntry]) -> bool:
    times = [entry.at for entry in trace]
    return times == sorted(times) and all(
        0 <= e.at < math.inf and e.prompt_tokens >= 1 and e.output_tokens >= 1 for e in trace
    )


def _are_classes(classes: Sequence[RequestClass]) -> bool:
    return len({each.name for each in classes}) == len(classes) and all(
        each.name
        and 0 < each.weight < math.inf
        and each.kind in PROMPTS
        and each.api in PATHS
        and each.turns >= 1
        and (bool(each.prompts) if each.kind in ("text", "file") else bool(each.prompt_tokens))
        for each in classes
    )
