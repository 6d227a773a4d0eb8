"""The watch over production: probes in, triggers fed, the first to fire ends it."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from vllm_rollout.deployment import Replica
from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.trigger import Trigger
from vllm_rollout.observe.probe import ProbeSample
from vllm_rollout.policy import Policy
from vllm_rollout.release.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnd:
    """How a watch ended.

    `fired` is the reason for rollback, or empty. `unobservable` names triggers that had no data at
    the end: nothing is known of them. `verdicts` are the SLO's by name, where the watch was long
    enough. `interrupted` is set where whoever asked for it had it ended before its time.
    """

    fired: str = ""
    interrupted: bool = False
    unobservable: tuple[str, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    observed_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the watch sees at one moment. `replicas` is None when the platform did not say."""

    probes: ProbeSample
    replicas: Sequence[Replica] | None


class Triggers:
    """The policy's rollback triggers over a stream of sights."""

    def __init__(self, policy: Policy, *, spike_until: float | None) -> None:
        rules = policy.triggers
        gap = rules.max_gap_seconds
        self._rules = rules
        self._spike_until = spike_until
        self._window: deque[tuple[float, ProbeSample]] = deque()
        self._triggers = {
            "error rate": Trigger(
                above=rules.error_rate.above,
                for_seconds=rules.error_rate.for_seconds,
                max_gap_seconds=gap,
                unit="ratio",
            ),
            f"P{rules.latency.percentile:g} latency": Trigger(
                above=rules.latency.above_seconds,
                for_seconds=rules.latency.for_seconds,
                max_gap_seconds=gap,
                unit="s",
            ),
            "complete outage": Trigger(
                above=rules.outage.above,
                at_least=True,
                for_seconds=rules.outage.for_seconds,
                max_gap_seconds=gap,
                unit="ratio",
            ),
            "crash loop": Trigger(
                above=1.0, at_least=True, consecutive=0, max_gap_seconds=gap, unit="ratio"
            ),
            "health check": Trigger(
                above=1.0,
                at_least=True,
                consecutive=rules.health.consecutive,
                max_gap_seconds=gap,
            ),
        }
        self._spike = Trigger(
            above=policy.watch.error_spike.rate,
            for_seconds=policy.watch.error_spike.for_seconds,
            max_gap_seconds=gap,
            unit="ratio",
        )

    def step(self, at: float, sight: Sight) -> tuple[str, tuple[str, ...]]:
        """Feed what was seen at `at` seconds: (why to roll back, or ""; triggers without data)."""
        self._window.append((at, sight.probes))
        while self._window[0][0] <= at - self._rules.window_seconds:
            self._window.popleft()
        total = sum(sample.total for _, sample in self._window)
        failures = sum(sample.failures for _, sample in self._window)
        now = sight.probes
        observations = {
            "error rate": failures / total if total else None,
            f"P{self._rules.latency.percentile:g} latency": self._percentile(),
            "complete outage": now.failures / now.total if now.total else None,
            "crash loop": _share_crashing(sight.replicas, self._rules.crash_loop.restarts),
            "health check": 0.0 if now.healthy else 1.0,
        }
        blind = []
        for name, trigger in self._triggers.items():
            state = trigger.step(at, observations[name])
            if state.fired:
                return f"{name}: {state.reason}", ()
            if not state.observable:
                blind.append(name)
        if self._spike_until is not None and at <= self._spike_until:
            state = self._spike.step(at, observations["error rate"])
            if state.fired:
                return f"error spike after promotion: {state.reason}", ()
        return "", tuple(blind)

    def _percentile(self) -> float | None:
        """Nearest-rank percentile over the window; unanswered probes are slower than any."""
        latencies = [s for _, sample in self._window for s in sample.latencies_seconds]
        latencies += [math.inf] * sum(sample.failures for _, sample in self._window)
        if not latencies:
            return None
        rank = math.ceil(len(latencies) * self._rules.latency.percentile / 100)
        return sorted(latencies)[max(0, rank - 1)]


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


@dataclass(slots=True, kw_only=True)
class Watcher:
    """Watches one deployment.

    `look` takes one sight and does not raise. `on_tick` is told once per observation how many
    seconds the watch has lasted and what was seen; `on_blind`, once each time, which triggers have
    had no data for longer than the policy's gap. `interrupted` is asked before each observation.
    """

    policy: Policy
    clock: Clock
    look: Callable[[], Sight]
    on_tick: Callable[[float, Sight], None]
    on_blind: Callable[[tuple[str, ...]], None] = lambda _names: None
    interrupted: Callable[[], bool] = lambda: False
    _slo_samples: list[ProbeSample] = field(default_factory=list)

    def watch(self, duration: timedelta | None, *, after_promotion: bool = False) -> WatchEnd:
        """Watch for `duration`, at least one observation; `after_promotion` judges the SLO too.

        None is for ever: until a trigger fires or it is interrupted.
        """
        watch = self.policy.watch
        triggers = Triggers(
            self.policy,
            spike_until=watch.error_spike.within_seconds if after_promotion else None,
        )
        self._slo_samples.clear()
        started = self.clock.monotonic()
        verdicts: Mapping[str, Verdict] = {}
        blind_since: float | None = None
        while True:
            elapsed = self.clock.monotonic() - started
            if self.interrupted():
                return WatchEnd(interrupted=True, verdicts=verdicts, observed_seconds=elapsed)
            sight = self.look()
            self.on_tick(elapsed, sight)
            fired, blind = triggers.step(elapsed, sight)
            if not blind:
                blind_since = None
            elif blind_since is None:
                blind_since = elapsed
            elif elapsed - blind_since > self.policy.triggers.max_gap_seconds:
                self.on_blind(blind)
                blind_since = math.inf
            if after_promotion and elapsed <= watch.slo.within_seconds:
                self._slo_samples.append(sight.probes)
            slo_due = after_promotion and elapsed >= watch.slo.within_seconds
            if slo_due and not verdicts:
                verdicts = self._slo_verdicts()
                failed = [v.reason for v in verdicts.values() if v.outcome is Outcome.FAIL]
                fired = fired or "; ".join(failed)
            if fired or (duration is not None and elapsed >= duration.total_seconds()):
                return WatchEnd(
                    fired=fired,
                    unobservable=blind,
                    verdicts=verdicts,
                    observed_seconds=elapsed,
                )
            self.clock.sleep(watch.interval)

    def _slo_verdicts(self) -> dict[str, Verdict]:
        slo = self.policy.watch.slo
        failures = sum(s.failures for s in self._slo_samples)
        return {
            f"P{slo.percentile:g} latency": percentile_verdict(
                [x for s in self._slo_samples for x in s.latencies_seconds],
                percentile=slo.percentile,
                limit_seconds=slo.limit_seconds,
                confidence=self.policy.confidence,
                censored=failures,
            ),
            "error rate": rate_verdict(
                failures,
                sum(s.total for s in self._slo_samples),
                limit=slo.error_rate,
                confidence=self.policy.confidence,
            ),
        }
