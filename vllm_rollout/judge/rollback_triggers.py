"""The policy's rollback triggers over observations: probes, platform, Prometheus.

Each source has triggers of its own, and any of them that fires is a reason to roll back. A silent
source is no data, and not health.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_rollout.judge.trigger import Trigger
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.percentiles import percentile_of
from vllm_rollout.model.request_counts import LatencyCounts, LiveCounts
from vllm_rollout.policy import Policy

_LIVE = " by Prometheus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """State of the triggers after an observation.

    `fired` is why to roll back, or empty. `blind` names triggers that had no data from probes or
    platform, `unseen` those that had none from Prometheus.
    """

    fired: str = ""
    blind: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


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
        self._latency = f"P{rules.latency.percentile:g} latency"

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

        def errors(source: str) -> dict[str, Trigger]:
            return {
                f"error rate{source}": rate(rules.error_rate.above, rules.error_rate.for_seconds),
                f"complete outage{source}": rate(
                    rules.outage.above, rules.outage.for_seconds, at_least=True
                ),
                f"error spike after promotion{source}": rate(spike.rate, spike.for_seconds),
            }

        self._triggers = {
            **errors(""),
            self._latency: Trigger(
                above=rules.latency.above_seconds,
                for_seconds=rules.latency.for_seconds,
                max_gap_seconds=gap,
                unit="s",
            ),
            "crash loop": in_a_row(0, "ratio"),
            "health check": in_a_row(rules.health.consecutive),
        }
        self._by_prometheus: dict[str, Trigger] = {}
        if policy.prometheus.url is not None:
            self._by_prometheus = {
                **errors(_LIVE),
                self._latency + _LIVE: rate(self._slow, rules.latency.for_seconds),
            }

    def step(self, at: float, observation: Observation) -> Found:
        """Feed what was seen at `at` seconds."""
        fired, blind = self._feed(self._triggers, at, self._probed(at, observation))
        fired_live, unseen = self._feed(self._by_prometheus, at, self._counted(observation.live))
        return Found(fired=fired or fired_live, blind=blind, unseen=unseen)

    def _feed(
        self, triggers: dict[str, Trigger], at: float, seen: dict[str, float | None]
    ) -> tuple[str, tuple[str, ...]]:
        """Return why to roll back, or empty, and which triggers had no data."""
        fired, blind = "", []
        for name, trigger in triggers.items():
            spike = name.startswith("error spike")
            if spike and (self._spike_until is None or at > self._spike_until):
                continue
            state = trigger.step(at, seen.get(name))
            if state.fired:
                fired = fired or f"{name}: {state.reason}"
            elif not state.observable and not spike:  # the error rate says the same
                blind.append(name)
        return fired, tuple(blind)

    def _probed(self, at: float, observation: Observation) -> dict[str, float | None]:
        now = observation.probes
        crashing = _share_crashing(observation.replicas, self._rules.crash_loop.restarts)
        if now.path_errors:
            return {"crash loop": crashing}
        self._window.append((at, now))
        while self._window[0][0] <= at - self._rules.window_seconds:
            self._window.popleft()
        total = sum(sample.total for _, sample in self._window)
        failures = sum(sample.failures for _, sample in self._window)
        share = failures / total if total else None
        return {
            "error rate": share,
            "complete outage": now.failures / now.total if now.total else None,
            "error spike after promotion": share,
            self._latency: self._percentile(),
            "crash loop": crashing,
            "health check": 0.0 if now.healthy else 1.0,
        }

    def _counted(self, live: LiveCounts | None) -> dict[str, float | None]:
        """The same by Prometheus; fewer requests than an observation has probes show nothing."""
        if live is None:
            return {}
        fewest, rates, rules = self._fewest, live.rates, self._rules
        return {
            f"error rate{_LIVE}": rates.against(rules.error_rate.above, fewest=fewest),
            f"complete outage{_LIVE}": rates.against(
                rules.outage.above, at_least=True, fewest=fewest
            ),
            f"error spike after promotion{_LIVE}": rates.against(self._spike, fewest=fewest),
            self._latency + _LIVE: self._share_slow(live.latency),
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
