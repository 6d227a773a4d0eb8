"""Canary and baseline, watched side by side while both serve, and compared.

Both are asked the same by the suite itself, at the same moments, whatever share of users' traffic
each has: so they differ by the build alone, and a canary with little traffic is seen as well as
one with much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.compare import compare_latency, compare_rate
from vllm_rollout.judge.rollback_triggers import Triggers
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.units import format_duration
from vllm_rollout.model.verdict import worst
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.watcher import WatchEnd

_LOOKS = 2
"""A step that is inconclusive is judged once more, at the end of its extension."""


@dataclass(slots=True)
class _Answers:
    """What one side has answered so far."""

    total: int = 0
    failures: int = 0
    latencies_seconds: list[float] = field(default_factory=list)

    def add(self, sample: ProbeSample) -> None:
        self.total += sample.total
        self.failures += sample.failures
        self.latencies_seconds += sample.latencies_seconds


@dataclass(slots=True)
class CanaryAnalysis:
    """The two sides of one step of a ramp by traffic."""

    context: Context
    _baseline: _Answers = field(default_factory=_Answers)
    _canary: _Answers = field(default_factory=_Answers)

    def hold(self, duration: timedelta, *, compared: bool) -> WatchEnd:
        """Watch both for `duration`; where they are `compared`, judge the canary at the end.

        Where they cannot be told apart yet, both are watched once more, for the policy's
        extension. The end has fired unless the canary is then shown to be no worse than it may be.
        """
        context, rules = self.context, self.context.policy.canary
        end = self._watch(duration)
        if not compared or end.fired or end.unobservable:
            return end
        verdicts = self._judged()
        if _outcome(verdicts) is Outcome.INCONCLUSIVE and rules.extend:
            context.say(f"the step is held for {format_duration(rules.extend)} longer")
            end = self._watch(rules.extend)
            if end.fired or end.unobservable:
                return end
            verdicts = self._judged()
        end = replace(end, verdicts=verdicts)
        if _outcome(verdicts) is Outcome.PASS:
            return end
        open_ = "; ".join(v.reason for v in verdicts.values() if not v.passed)
        return replace(end, fired=f"canary against baseline ({_outcome(verdicts)}): {open_}")

    def _watch(self, duration: timedelta) -> WatchEnd:
        """Watch the triggers of both; what they answer is kept for comparison.

        A trigger of either ends it: where the baseline is unwell, traffic does not move on.
        """
        context = self.context
        target, clock = context.target, context.clock
        triggers, started = Triggers(context.policy, spike_until=None), clock.monotonic()
        fired: list[str] = []

        with (
            context.looks.probe_pods(target) as baseline,
            context.looks.probe_pods(target.canary) as canary,
        ):

            def look() -> Observation:
                beside, seen = baseline(), canary()
                self._baseline.add(beside.probes)
                self._canary.add(seen.probes)
                if why := triggers.step(clock.monotonic() - started, beside).fired:
                    fired.append(why)
                return seen

            end = context.watch(target.canary, duration, look=look, interrupted=lambda: bool(fired))
        if end.fired:
            return replace(end, fired=f"{target.canary}: {end.fired}")
        return replace(end, fired=f"{target}, beside its canary: {fired[0]}") if fired else end

    def _judged(self) -> dict[str, Verdict]:
        """How the canary compares with the baseline, by what is compared; told to people too."""
        rules, baseline, canary = self.context.policy.canary, self._baseline, self._canary
        # Each of the looks may be wrong with its part of the risk, so that all are with the whole.
        looks = _LOOKS if rules.extend else 1
        confidence = 1 - (1 - self.context.policy.confidence) / looks
        found: dict[str, Verdict] = {}
        if rules.latency is not None:
            found[f"P{rules.latency.percentile:g} latency"] = compare_latency(
                baseline.latencies_seconds,
                canary.latencies_seconds,
                percentile=rules.latency.percentile,
                largest_ratio=1 + rules.latency.slower,
                confidence=confidence,
                baseline_censored=baseline.failures,
                canary_censored=canary.failures,
            )
        if rules.error_rate is not None:
            found["error rate"] = compare_rate(
                baseline.failures,
                baseline.total,
                canary.failures,
                canary.total,
                largest_difference=rules.error_rate.more,
                confidence=confidence,
            )
        for name, verdict in found.items():
            title = f"canary against baseline, {name}: {verdict.outcome}"
            self.context.say(title, verdict.reason, verdict.outcome)
        return found


def _outcome(verdicts: Mapping[str, Verdict]) -> Outcome:
    return worst(verdict.outcome for verdict in verdicts.values())
