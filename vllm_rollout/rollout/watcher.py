"""Watch loop: feeds observations to the triggers; the first that fires ends it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.live_slo import error_rate_verdicts, latency_verdict
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.judge.rollback_triggers import Found, Triggers
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.request_counts import LiveCounts
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.run import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnd:
    """Result of a watch.

    `fired` is the reason for rollback, or empty. `unobservable` names triggers that had no data at
    the end, and the SLO after promotion where no probe was seen in its time: nothing is known of
    them. `refused` is why the last probes showed nothing of the build, where they were refused for
    the key or sent elsewhere, and why resources had no data. `unseen` names those that had none
    from Prometheus, and why; the probes had theirs. `verdicts` are the SLO's by name, where the
    watch was long enough. `interrupted` is set where the caller ended it before its time.
    """

    fired: str = ""
    interrupted: bool = False
    unobservable: tuple[str, ...] = ()
    refused: str = ""
    unseen: str = ""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    observed_seconds: float

    @property
    def blind(self) -> str:
        """The triggers without data, and the reason where the probes were refused."""
        return ": ".join(filter(None, [", ".join(self.unobservable), self.refused]))


@dataclass(slots=True, kw_only=True)
class Watcher:
    """Watches one deployment.

    `observe` makes one observation and does not raise. `on_tick` is called for each observation,
    with the seconds since the watch began; `on_found`, for each after the policy's gap, with what
    the triggers found and, as text, which have no data from Prometheus, and why; `on_pending`,
    once, with the conditions for which it goes on after its time. `live` returns its counts
    since the watch began, None without Prometheus. `interrupted` is called before each observation.
    """

    policy: Policy
    clock: Clock
    observe: Callable[[], Observation]
    on_tick: Callable[[float, Observation], None]
    on_found: Callable[[Found, str], None] = lambda _found, _gap: None
    on_pending: Callable[[tuple[str, ...]], None] = lambda _conditions: None
    live: Callable[[], LiveCounts | None] = lambda: None
    interrupted: Callable[[], bool] = lambda: False
    _slo_samples: list[ProbeSample] = field(default_factory=list)
    _latest: LiveCounts | None = None

    def watch(self, duration: timedelta | None, *, after_promotion: bool = False) -> WatchEnd:
        """Watch for `duration`, at least one observation; `after_promotion` judges the SLO too.

        None is without end: until a trigger fires or it is interrupted. A condition that holds at
        the end is watched on until it fires or is over, unless `duration` is 0: what began late is
        no sign of health.
        """
        watch = self.policy.watch
        triggers = Triggers(
            self.policy,
            spike_until=watch.error_spike.within_seconds if after_promotion else None,
        )
        self._slo_samples.clear()
        watched_on = False
        started = self.clock.monotonic()
        verdicts: Mapping[str, Verdict] = {}
        unjudged: tuple[str, ...] = ()
        while True:
            elapsed = self.clock.monotonic() - started
            if self.interrupted():
                return WatchEnd(interrupted=True, verdicts=verdicts, observed_seconds=elapsed)
            observation = self.observe()
            self.on_tick(elapsed, observation)
            found = triggers.step(elapsed, observation)
            self._latest = observation.live or self._latest
            if elapsed > self.policy.triggers.max_gap_seconds:
                # A trigger without data has had none for longer than the gap, or never; by now both
                # are too long.
                self.on_found(found, self._gap(found))
            fired = found.fired
            if after_promotion and elapsed <= watch.slo.within_seconds:
                self._slo_samples.append(observation.probes)
            slo_due = after_promotion and elapsed >= watch.slo.within_seconds
            if slo_due and not verdicts:
                by_probes = self._slo_by_probes()
                # Prometheus, beside the probes, may know nothing; no data is no pass.
                unjudged = tuple(f"{k} after promotion" for k, v in by_probes.items() if not v.n)
                verdicts = {**by_probes, **self._slo_by_prometheus()}
                failed = [v.reason for v in verdicts.values() if v.outcome is Outcome.FAIL]
                fired = fired or "; ".join(failed)
            over = duration is not None and elapsed >= duration.total_seconds()
            if over and found.pending and duration:
                if not watched_on:
                    self.on_pending(found.pending)
                watched_on, over = True, False
            if fired or over:
                return WatchEnd(
                    fired=fired,
                    unobservable=(*found.blind, *unjudged),
                    refused="; ".join(
                        filter(None, [observation.probes.refused_because, found.unknown])
                    ),
                    unseen=self._gap(found) if duration != timedelta() else "",
                    verdicts=verdicts,
                    observed_seconds=elapsed,
                )
            self.clock.sleep(watch.interval)

    def _gap(self, found: Found) -> str:
        """Return the triggers that have no data from Prometheus, and why; empty if all have."""
        if not found.unseen:
            return ""
        why = "it has not answered yet"
        if self._latest is not None:
            why = self._latest.unknown or (
                "no newer scrape, too few requests, or buckets that do not decide"
            )
        return f"{', '.join(found.unseen)}: {why}"

    def _slo_by_probes(self) -> dict[str, Verdict]:
        slo, confidence = self.policy.watch.slo, self.policy.confidence
        failures = sum(s.failures for s in self._slo_samples)
        return {
            f"P{slo.percentile:g} latency": percentile_verdict(
                [x for s in self._slo_samples for x in s.latencies_seconds],
                percentile=slo.percentile,
                limit_seconds=slo.limit_seconds,
                confidence=confidence,
                censored=failures,
            ),
            "error rate": rate_verdict(
                failures,
                sum(s.total for s in self._slo_samples),
                limit=slo.error_rate,
                confidence=confidence,
            ),
        }

    def _slo_by_prometheus(self) -> dict[str, Verdict]:
        slo, confidence = self.policy.watch.slo, self.policy.confidence
        live = self.live()
        if live is None:
            return {}
        verdicts = {
            f"P{slo.percentile:g} latency by Prometheus": latency_verdict(
                live.latency,
                percentile=slo.percentile,
                limit_seconds=slo.limit_seconds,
                confidence=confidence,
            )
        }
        sources = live.rates.sources
        judged = error_rate_verdicts(sources, limit=slo.error_rate, confidence=confidence)
        for source, verdict in zip(sources, judged, strict=True):
            verdicts[f"error rate by Prometheus ({source.source})"] = verdict
        return verdicts
