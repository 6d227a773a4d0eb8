"""The policy's rollback triggers over observations: probes, platform, Prometheus, resources.

Each source has triggers of its own, and any of them that fires is a reason to roll back. A silent
source is no data, and not health.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vllm_rollout.judge.resources import ResourceTriggers
from vllm_rollout.judge.trigger import Trigger
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.percentiles import percentile_of
from vllm_rollout.model.request_counts import LatencyCounts, LiveCounts
from vllm_rollout.policy import Policy


class _Kind(StrEnum):
    """Kinds of triggers; probes and Prometheus have their own of most."""

    ERROR_RATE = "error rate"
    OUTAGE = "complete outage"
    SPIKE = "error spike after promotion"
    LATENCY = "latency"
    CRASH_LOOP = "crash loop"
    HEALTH = "health check"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """State of the triggers after an observation.

    `fired` is why to roll back, or empty. `pending` names triggers whose condition holds, and has
    not held for long enough yet, and those on resources whose first sample may still come. `blind`
    names triggers that had no data from probes or platform, and those on resources that had none
    for too long, `unseen` those that had none from Prometheus; `nothing` is whether these are all
    there are. `unknown` is why resources had no data.
    """

    fired: str = ""
    pending: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    nothing: bool = False
    unknown: str = ""


class Triggers:
    """The triggers of one watch. Until `spike_until` seconds they look for an error spike too."""

    def __init__(self, policy: Policy, *, spike_until: float | None) -> None:
        rules, spike = policy.triggers, policy.watch.error_spike
        gap = rules.max_gap_seconds
        self._rules = rules
        self._spike_until, self._spike = spike_until, spike.rate
        self._fewest = policy.watch.probes
        self._window: deque[tuple[float, ProbeSample]] = deque()
        self._slow = 1 - rules.latency.percentile / 100

        def rate(above: float, seconds: float, *, at_least: bool = False) -> Trigger:
            return Trigger(
                above=above,
                at_least=at_least,
                for_seconds=seconds,
                max_gap_seconds=gap,
                unit="ratio",
            )

        def in_a_row(count: int, unit: str = "") -> Trigger:
            return Trigger(
                above=1.0, at_least=True, consecutive=count, max_gap_seconds=gap, unit=unit
            )

        def errors() -> dict[_Kind, Trigger]:
            return {
                _Kind.ERROR_RATE: rate(rules.error_rate.above, rules.error_rate.for_seconds),
                _Kind.OUTAGE: rate(rules.outage.above, rules.outage.for_seconds, at_least=True),
                _Kind.SPIKE: rate(spike.rate, spike.for_seconds),
            }

        self._triggers = {
            **errors(),
            _Kind.LATENCY: Trigger(
                above=rules.latency.above_seconds,
                for_seconds=rules.latency.for_seconds,
                max_gap_seconds=gap,
                unit="s",
            ),
            _Kind.CRASH_LOOP: in_a_row(0, "ratio"),
            _Kind.HEALTH: in_a_row(rules.health.consecutive),
        }
        self._by_prometheus: dict[_Kind, Trigger] = {}
        if policy.prometheus.url is not None:
            self._by_prometheus = {
                **errors(),
                _Kind.LATENCY: rate(self._slow, rules.latency.for_seconds),
            }

        kinds = (*self._triggers, *self._by_prometheus)
        self._resources = ResourceTriggers(rules.resources, max_gap_seconds=gap)
        watched = [kind for kind in kinds if kind is not _Kind.SPIKE]
        self._watched = len(watched) + len(self._resources)

    def step(self, at: float, observation: Observation) -> Found:
        """Feed what was seen at `at` seconds."""
        probed = self._feed(self._triggers, at, self._probed(at, observation))
        counted = self._counted(observation.live)
        live = self._feed(self._by_prometheus, at, counted, " by Prometheus")
        used = self._used(at, observation)
        blind = (*probed.blind, *used.blind)
        return Found(
            fired=probed.fired or live.fired or used.fired,
            pending=(*probed.pending, *live.pending, *used.pending),
            blind=blind,
            unseen=live.blind,
            nothing=len(blind) + len(live.blind) == self._watched,
            unknown=used.unknown,
        )

    def _used(self, at: float, observation: Observation) -> Found:
        """Return the state of the triggers on resources."""
        found = [*self._resources.step(at, observation.figures)]
        named = [(f"{each.name}: {each.state.reason}", each) for each in found]
        return Found(
            fired=next((text for text, each in named if each.state.fired), ""),
            pending=(
                *(
                    text
                    for text, each in named
                    if each.state.observable and each.state.since is not None
                ),
                *(f"{each.name}: not known yet: {each.why}" for each in found if each.awaited),
            ),
            blind=tuple(each.name for each in found if not (each.state.observable or each.awaited)),
            unknown=_reasons(
                {each.name: each.why for each in found if each.why and not each.awaited}
            ),
        )

    def _feed(
        self,
        triggers: dict[_Kind, Trigger],
        at: float,
        seen: dict[_Kind, float | None],
        source: str = "",
    ) -> Found:
        """Return the state of the triggers of one source."""
        fired, pending, blind = "", [], []
        for kind, trigger in triggers.items():
            spike = kind is _Kind.SPIKE
            if spike and (self._spike_until is None or at > self._spike_until):
                continue
            state = trigger.step(at, seen.get(kind))
            percentile = f"P{self._rules.latency.percentile:g} " if kind is _Kind.LATENCY else ""
            name = f"{percentile}{kind}{source}"
            if state.fired:
                fired = fired or f"{name}: {state.reason}"
            elif state.observable and state.since is not None:
                pending.append(f"{name}: {state.reason}")
            elif not state.observable and not spike:  # the error rate says the same
                blind.append(name)
        return Found(fired=fired, pending=tuple(pending), blind=tuple(blind))

    def _probed(self, at: float, observation: Observation) -> dict[_Kind, float | None]:
        now = observation.probes
        crashing = _share_crashing(observation.replicas, self._rules.crash_loop.restarts)
        if now.path_errors:
            return {_Kind.CRASH_LOOP: crashing}
        self._window.append((at, now))
        while self._window[0][0] <= at - self._rules.window_seconds:
            self._window.popleft()
        total = sum(sample.total for _, sample in self._window)
        failures = sum(sample.failures for _, sample in self._window)
        share = failures / total if total else None
        outage = now.failures / now.total if now.total else None
        if now.refused and not now.failures:  # what refuses the watch's key shows no health
            share = outage = None
        health = 0.0 if now.healthy else 1.0
        return {
            _Kind.ERROR_RATE: share,
            _Kind.OUTAGE: outage,
            _Kind.SPIKE: share,
            _Kind.LATENCY: self._percentile() if now.total else None,
            _Kind.CRASH_LOOP: crashing,
            _Kind.HEALTH: None if now.health_cached or now.health_refused else health,
        }

    def _counted(self, live: LiveCounts | None) -> dict[_Kind, float | None]:
        """The same by Prometheus; fewer requests than an observation has probes show nothing."""
        if live is None:
            return {}
        fewest, rates, rules = self._fewest, live.rates, self._rules
        return {
            _Kind.ERROR_RATE: rates.against(rules.error_rate.above, fewest=fewest),
            _Kind.OUTAGE: rates.against(rules.outage.above, at_least=True, fewest=fewest),
            _Kind.SPIKE: rates.against(self._spike, fewest=fewest),
            _Kind.LATENCY: self._share_slow(live.latency),
        }

    def _share_slow(self, counts: LatencyCounts) -> float | None:
        """The share of requests above the latency's limit; None where the buckets do not tell."""
        limit = self._rules.latency.above_seconds
        share = counts.above(limit) if counts.total >= self._fewest else None
        if share is None:
            return None
        above = counts.percentile_above(self._rules.latency.percentile, limit)
        return None if above is None else share[0] if above else share[1]

    def _percentile(self) -> float | None:
        """Nearest-rank percentile over the window; unanswered probes are slower than any."""
        latencies = [s for _, sample in self._window for s in sample.latencies_seconds]
        latencies += [math.inf] * sum(sample.failures for _, sample in self._window)
        if not latencies:
            return None
        return percentile_of(sorted(latencies), self._rules.latency.percentile)


def _reasons(by_name: Mapping[str, str]) -> str:
    """The reasons; each with its name, unless they are one."""
    whys = dict.fromkeys(by_name.values())
    if len(whys) == 1:
        return next(iter(whys))
    return "; ".join(f"{name}: {why}" for name, why in by_name.items())


def _share_crashing(replicas: Sequence[Replica] | None, restarts: int) -> float | None:
    if replicas is None:
        return None
    if not replicas:
        return 1.0
    crashing = [
        r
        for r in replicas
        if not r.ready
        and (r.restarts >= restarts or r.phase == "Failed" or r.reason == "CrashLoopBackOff")
    ]
    return len(crashing) / len(replicas)
