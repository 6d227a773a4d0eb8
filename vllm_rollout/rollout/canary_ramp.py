"""Ramp by traffic: a canary comes up beside the release and takes its traffic step by step.

When the canary has carried all of it for the last step's hold, the release itself, which has no
users then, is brought to the build at full size; traffic goes back to it, and the canary is
removed.

Canary and baseline are watched side by side while both serve, and compared. The suite itself sends
both the same requests, at the same moments, whatever share of users' traffic each has: so they
differ by the build alone, and a canary with little traffic is measured as well as one with much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.canary import Answers, canary_verdicts
from vllm_rollout.judge.rollback_triggers import Triggers
from vllm_rollout.model.deployment import Build, Deployment, Revision, Target
from vllm_rollout.model.errors import DeployError, ExitCode
from vllm_rollout.model.observation import Observation
from vllm_rollout.model.units import counted, format_duration, format_share, format_value, of_total
from vllm_rollout.model.verdict import worst
from vllm_rollout.platform.base import Weights
from vllm_rollout.policy import Policy, RampStep
from vllm_rollout.rollout.gates import Gates
from vllm_rollout.rollout.journal import Event, JournalEntry, TrafficBefore
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.preconditions import same_images
from vllm_rollout.rollout.promotion_blockers import until_open
from vllm_rollout.rollout.run import RolloutResult, Run, RunLog, Undo, not_serving
from vllm_rollout.rollout.traffic_shift import NotCarriedError, TrafficShift
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


def describe_traffic_ramp(policy: Policy, target: Deployment, build: Build) -> list[str]:
    """Return the steps of a ramp by traffic, one line each."""
    capacity = policy.environments[target.environment].replicas
    lines = [
        f"bring up {counted(step.replicas_of(capacity), 'replica')} of {target.canary} on build "
        f"{build.short}, give it {format_share(step.share_of(capacity))} of the "
        f"traffic, then watch both for {format_duration(step.hold)}"
        for step in policy.ramp
    ]
    lines.append(
        f"bring {counted(capacity, 'replica')} of {target} to build {build.short}, give "
        f"the traffic back to it, and remove {target.canary}"
    )
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRamp:
    """Brings one build to all of the target's traffic, starting from `before`."""

    run: Run
    log: RunLog
    releases: LeasedReleases
    observer: DeploymentObserver
    gates: Gates
    traffic: TrafficShift
    build: Build
    values: Mapping[str, Any]
    images: tuple[str, ...]
    """Image digests of the gated replicas, as in `Promotion`."""
    before: TrafficBefore

    def climb(self, entry: JournalEntry) -> JournalEntry | Undo | RolloutResult:
        """Bring the canary up and all of the traffic to it, step by step, each held and judged."""
        weights = self.before.weights
        for step in self.run.policy.ramp:
            try:
                entry = self._canary_up(entry, step)
                entry, weights = self._give(entry, step, weights)
            except DeployError as error:
                self.log.log_symptoms(error)
                moved = self.releases.platform.weights(self.run.target) != self.before.weights
                code = ExitCode.ROLLED_BACK if moved else ExitCode.GATE_FAILED
                return Undo(entry, str(error), code)
            if (end := self._hold(entry, step)) is not None:
                return end
        return entry

    def take_its_place(
        self, entry: JournalEntry, *, good: int | None
    ) -> tuple[JournalEntry, Revision] | Undo:
        """Bring the release to the build, give it the traffic back, and remove the canary.

        From here on a rollback returns to revision `good`.
        """
        target = self.run.target
        what = f"{of_total(self._capacity, self._capacity, 'replica')} on build {self.build.short}"
        try:
            self._answers(target.canary)
            entry = replace(entry, before=good or entry.before)
            entry = self._written(entry, f"{what}, while the canary has the traffic")
            revision = self._apply(entry, target, self._capacity)
            self._answers(target)
            everything = Weights.of_share(1)
            entry = replace(entry, weights=(everything, self.before.weights))
            entry = self._written(entry, "traffic goes back to the release")
            self.traffic.shift(
                self.before.weights,
                expect=everything,
                needs={target: self._capacity},
            )
            run = self.gates.verify(target)
            if run.outcome is not Outcome.PASS:
                return Undo(entry, not_serving(run))
            self.traffic.remove_canary()
        except DeployError as error:
            self.log.log_symptoms(error)
            return Undo(entry, str(error))
        self.log.log_step(
            f"{target}: revision {revision.number} has the traffic", what, Outcome.PASS
        )
        return replace(entry, traffic=None), revision

    @property
    def _capacity(self) -> int:
        return self.run.policy.environments[self.run.target.environment].replicas

    def _canary_up(self, entry: JournalEntry, step: RampStep) -> JournalEntry:
        replicas = step.replicas_of(self._capacity)
        entry = self._written(entry, f"{replicas} canary replicas on build {self.build.short}")
        self._apply(entry, self.run.target.canary, replicas)
        return entry

    def _give(
        self, entry: JournalEntry, step: RampStep, now: Weights
    ) -> tuple[JournalEntry, Weights]:
        """Give the canary the step's share. The release keeps all replicas: see `traffic_shift`."""
        target, share = self.run.target, step.share_of(self._capacity)
        weights = Weights.of_share(share)
        entry = self._written(
            replace(entry, weights=(now, weights)),
            f"{format_share(share)} of the traffic on build {self.build.short}",
        )
        needs = {
            target.canary: step.replicas_of(self._capacity),
            target: self.before.replicas,
        }
        self.traffic.shift(weights, expect=now, needs=needs)
        return entry, weights

    def _hold(self, entry: JournalEntry, step: RampStep) -> Undo | RolloutResult | None:
        """Hold the step; return how the ramp ends if the step may not be passed."""
        share = step.share_of(self._capacity)
        both_serve = share < 1 and bool(step.hold) and self.run.policy.canary.compares
        analysis = CanaryAnalysis(run=self.run, observer=self.observer, log=self.log)
        end = analysis.hold(step.hold, compared=both_serve)
        # Also after the last: the release itself is changed next.
        end = until_open(self.run, self.log, end, lambda time: analysis.hold(time, compared=False))
        if end.fired:
            return Undo(entry, end.fired)
        if end.unobservable:
            return RolloutResult(
                code=ExitCode.UNREACHABLE,
                conclusion=f"The watch over the canary, {format_share(share)} of the traffic, went "
                f"blind ({end.blind}), and what is not seen does not go on. "
                f"To undo this step: {self.run.command}",
            )
        return None

    def _apply(self, entry: JournalEntry, deployment: Deployment, replicas: int) -> Revision:
        target = Target(build=self.build, values=self.values, replicas=replicas, capacity=replicas)
        revision = self.releases.apply(deployment, target, entry.note)
        same_images(self.releases.platform, deployment, self.build, self.images)
        self.log.log_step(
            f"{deployment}: revision {revision.number} is ready", outcome=Outcome.PASS
        )
        return revision

    def _answers(self, deployment: Deployment) -> None:
        """Return if the release's own pods fail no more than the error rate's trigger allows."""
        limit = self.run.policy.triggers.error_rate.above
        if (share := self.observer.failing_share(deployment)) > limit:
            raise NotCarriedError(
                f"{deployment} is ready, and fails {format_value(share, 'ratio')} of the requests"
            )

    def _written(self, entry: JournalEntry, note: str) -> JournalEntry:
        entry = self.releases.advance(entry, Event.STEP, note)
        self.log.log_step(f"{self.run.target}: {note}")
        return entry
