"""Use of resources against the policy's limits: GPU memory, KV cache, and requests waiting.

A trigger fires by what was sampled over its time, a gate passes where each reading is below its
limit. What is not known, or has no new sample, is no data, and not health.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from vllm_rollout.judge.trigger import Trigger, TriggerState
from vllm_rollout.model.live_figures import FigureName
from vllm_rollout.model.observation import FiguresRead
from vllm_rollout.model.text import shown
from vllm_rollout.model.units import counted, format_duration, format_value
from vllm_rollout.model.verdict import Outcome, Verdict, VerdictMethod, check
from vllm_rollout.policy.watch import QueueTrigger, ResourceTrigger

_FEWEST_SAMPLES = 2
"""A figure that does not move may be of a source that has stopped."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource whose use the policy can limit, and where to look if its use is not known."""

    words: str
    unit: str
    where: str


_SERVERS = "See that Prometheus, or this machine, reads /metrics of every server"
RESOURCES: Mapping[FigureName, Resource] = {
    FigureName.GPU_MEMORY: Resource(
        "use of GPU memory", "ratio", "See that Prometheus scrapes the DCGM exporter"
    ),
    FigureName.KV_CACHE: Resource("use of the KV cache", "ratio", _SERVERS),
    FigureName.QUEUE: Resource("requests waiting", "count", _SERVERS),
}


@dataclass(frozen=True, slots=True)
class ResourceState:
    """State of one trigger after a reading; `why` is why the reading shows nothing. `awaited` is
    whether the first sample may still come.
    """

    name: str
    state: TriggerState
    why: str
    awaited: bool


class ResourceTriggers:
    """The policy's triggers on resources: those of `rules`, by name."""

    def __init__(
        self,
        rules: Mapping[FigureName, ResourceTrigger | QueueTrigger],
        *,
        max_gap_seconds: float,
    ) -> None:
        self._triggers = [
            _SampledTrigger(
                name,
                Trigger(
                    above=rule.above,
                    for_seconds=rule.for_seconds,
                    max_gap_seconds=max_gap_seconds,
                    unit=RESOURCES[name].unit,
                ),
            )
            for name, rule in rules.items()
        ]

    def __len__(self) -> int:
        return len(self._triggers)

    def step(self, at: float, readings: Sequence[FiguresRead]) -> Iterator[ResourceState]:
        """Feed what was read from the last step to `at` seconds."""
        for trigger in self._triggers:
            yield trigger.step(at, readings)


class _SampledTrigger:
    """A trigger whose time is that of the samples: one sample that is read twice is one."""

    def __init__(self, name: FigureName, trigger: Trigger) -> None:
        self._name, self._trigger = name, trigger
        self._first: datetime | None = None
        self._sampled: datetime | None = None
        self._seen_at: float | None = None
        """The time of the first step, until there is a sample."""
        self._why = "nothing was read yet"

    def step(self, at: float, readings: Sequence[FiguresRead]) -> ResourceState:
        """Return the state at `at` seconds, after the `readings`."""
        words, longest = RESOURCES[self._name].words, self._trigger.rule.max_gap_seconds
        if self._seen_at is None:
            self._seen_at = at
        for read in readings:
            sample = _sample(self._name, read, longest)
            if isinstance(sample, str):
                self._why = sample
            elif self._sampled and 0 <= (self._sampled - sample.at).total_seconds() <= longest:
                self._why = f"there is no newer sample than that of {self._sampled:%H:%M:%S %Z}"
            else:
                self._first = self._first or sample.at
                self._sampled, self._seen_at = sample.at, at
                self._trigger.step((sample.at - self._first).total_seconds(), sample.value)
        state, blind = self._trigger.state, at - self._seen_at > longest
        if blind:
            state = replace(state, observable=False, since=None)
        awaited = self._sampled is None and not blind
        return ResourceState(words, state, "" if state.observable else self._why, awaited)


def resource_verdict(
    name: FigureName, readings: Sequence[FiguresRead], *, limit: float, longest: timedelta
) -> Verdict:
    """The verdict on the readings of one resource: each has to be below the limit.

    A reading that is not known, or whose sample is older than `longest`, is inconclusive, as are
    readings of one sample alone.
    """
    resource = RESOURCES[name]
    unit, remedy = resource.unit, f"{resource.where}, or set `gates.{name}: off`."
    highest: float | None = None
    samples: set[datetime] = set()
    unknown = "" if readings else "nothing was read"
    for read in readings:
        sample = _sample(name, read, longest.total_seconds())
        if isinstance(sample, str):
            unknown = unknown or sample
            continue
        samples.add(sample.at)
        highest = sample.value if highest is None else max(highest, sample.value)
    n = len(samples)
    if highest is None:
        return check(None, f"{resource.words}: not known: {unknown}", remedy=remedy, n=0)
    of = f"{resource.words}: {format_value(highest, unit)} at most in {counted(n, 'sample')}"
    verdict = Verdict(
        outcome=Outcome.FAIL,
        reason=f"{of}, not below {format_value(limit, unit)}",
        measured=highest,
        limit=limit,
        n=n,
        unit=unit,
        method=VerdictMethod.COMPARED,
        remedy="Add replicas, or lower what each has to keep (`--max-model-len`, "
        "`--max-num-seqs`, `--gpu-memory-utilization`).",
    )
    if highest >= limit:
        return verdict
    if unknown:
        return verdict.inconclusive_because(f"{of}, and a reading is not known: {unknown}", remedy)
    if n < _FEWEST_SAMPLES:
        return verdict.inconclusive_because(f"{of}, and no newer one came", remedy)
    below = f"{of}, below {format_value(limit, unit)}"
    return replace(verdict, outcome=Outcome.PASS, reason=below, remedy="")


@dataclass(frozen=True, slots=True)
class _Sample:
    value: float
    at: datetime


def _sample(name: FigureName, read: FiguresRead, longest: float) -> _Sample | str:
    """Return a sample that is not older than `longest` seconds, or why there is none."""
    figure = read.figures.get(name)
    if figure is None:
        return shown(read.problem) or "it was not read"
    if figure.value is None:
        return shown(figure.unknown)
    source = shown(figure.source)
    value = figure.share if name is FigureName.GPU_MEMORY else figure.value
    if value is None:
        return f"{source} does not say how much there is"
    most = 1.0 if RESOURCES[name].unit == "ratio" else math.inf
    if not 0 <= value <= most or math.isinf(value):
        return f"{source} says {value:.4g}"
    if figure.at is None:
        return f"{source} does not say when"
    age = (read.at - figure.at).total_seconds()
    if abs(age) > longest:
        words = "old" if age > 0 else "ahead of this machine's clock"
        late = format_duration(timedelta(seconds=round(abs(age))))
        return f"the newest sample of {source} is {late} {words}"
    return _Sample(value, figure.at)
