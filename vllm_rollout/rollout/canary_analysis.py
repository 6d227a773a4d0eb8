"""Canary analysis: canary and baseline, watched side by side while both serve, and compared.

The suite itself sends both the same requests, at the same moments, whatever share of users' traffic
each has: so they differ by the build alone, and a canary with little traffic is measured as well as
one with much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.canary import Answers, canary_verdicts
from vllm_rollout.judge.rollback_triggers import Triggers
from vllm_rollout.model.observation import Observation
from vllm_rollout.model.units import format_duration
from vllm_rollout.model.verdict import worst
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.run import Run
from vllm_rollout.rollout.run_log import RunLog
from vllm_rollout.rollout.watcher import WatchEnd


@dataclass(slots=True, kw_only=True)
class CanaryAnalysis:
    """Both sides of one step of a ramp by traffic."""

    run: Run
    observer: DeploymentObserver
    log: RunLog
    _baseline: Answers = field(default_factory=Answers)
    _canary: Answers = field(default_factory=Answers)

    def hold(self, duration: timedelta, *, compared: bool) -> WatchEnd:
        """Watch both for `duration`; where they are `compared`, judge the canary at the end.

        Where the comparison is inconclusive, both are watched once more, for the policy's
        extension. The end has fired unless the canary is then shown to be no worse than it may be.
        """
        rules = self.run.policy.canary
        end = self._watch(duration)
        if not compared or end.fired or end.unobservable:
            return end
        verdicts = self._verdicts()
        if _outcome(verdicts) is Outcome.INCONCLUSIVE and rules.extend:
            self.log.log_step(f"the step is held for {format_duration(rules.extend)} longer")
            end = self._watch(rules.extend)
            if end.fired or end.unobservable:
                return end
            verdicts = self._verdicts()
        end = replace(end, verdicts=verdicts)
        if _outcome(verdicts) is Outcome.PASS:
            return end
        open_ = "; ".join(v.reason for v in verdicts.values() if not v.passed)
        return replace(end, fired=f"canary against baseline ({_outcome(verdicts)}): {open_}")

    def _watch(self, duration: timedelta) -> WatchEnd:
        """Watch the triggers of both; their answers are kept for comparison.

        A trigger of either ends the watch: while the baseline is unwell, traffic does not move on.
        """
        target, clock = self.run.target, self.log.clock
        triggers, started = Triggers(self.run.policy, spike_until=None), clock.monotonic()
        fired: list[str] = []

        with (
            self.observer.probe_pods(target) as baseline,
            self.observer.probe_pods(target.canary) as canary,
        ):

            def observe() -> Observation:
                beside, seen = baseline(), canary()
                self._baseline.add(beside.probes)
                self._canary.add(seen.probes)
                if why := triggers.step(clock.monotonic() - started, beside).fired:
                    fired.append(why)
                return seen

            end = self.observer.watch(
                target.canary, duration, observe=observe, interrupted=lambda: bool(fired)
            )
        if end.fired:
            return replace(end, fired=f"{target.canary}: {end.fired}")
        return replace(end, fired=f"{target}, beside its canary: {fired[0]}") if fired else end

    def _verdicts(self) -> dict[str, Verdict]:
        """Compare the canary with the baseline and log each verdict."""
        found = canary_verdicts(self._baseline, self._canary, self.run.policy)
        for name, verdict in found.items():
            title = f"canary against baseline, {name}: {verdict.outcome}"
            self.log.log_step(title, verdict.reason, verdict.outcome)
        return found


def _outcome(verdicts: Mapping[str, Verdict]) -> Outcome:
    return worst(verdict.outcome for verdict in verdicts.values())
