"""The ramp by traffic: a canary comes up beside the release and takes its traffic step by step.

When the canary has carried all of it for the last step's hold, the release itself, which nobody
uses then, is brought to the build at full size; traffic goes back to it, and the canary is removed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Build, Deployment, Revision, Target
from vllm_rollout.model.errors import DeployError, ExitCode
from vllm_rollout.model.units import format_duration, format_share, format_value
from vllm_rollout.platform.base import Weights
from vllm_rollout.policy import RampStep
from vllm_rollout.rollout.build_drift import same_images
from vllm_rollout.rollout.canary_analysis import CanaryAnalysis
from vllm_rollout.rollout.context import Context
from vllm_rollout.rollout.journal import JournalEntry, Phase, TrafficBefore
from vllm_rollout.rollout.result import RolloutResult, problems_of
from vllm_rollout.rollout.rollback import roll_back
from vllm_rollout.rollout.traffic_shift import NotCarriedError, failing, remove_canary, shift


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRamp:
    """The way of one build to all of the target's traffic; `before` is where it sets out."""

    context: Context
    build: Build
    values: Mapping[str, Any]
    images: tuple[str, ...]
    """Of the gated replicas, as in `Promotion`."""
    before: TrafficBefore

    def describe(self) -> list[str]:
        """What `climb` and `take_its_place` would do, one line each."""
        target = self.context.target
        lines = [
            f"bring up {step.replicas_of(self._capacity)} replicas of {target.canary} on build "
            f"{self.build.short}, give it {format_share(step.share_of(self._capacity))} of the "
            f"traffic, then watch both for {format_duration(step.hold)}"
            for step in self.context.policy.ramp
        ]
        lines.append(
            f"bring all {self._capacity} replicas of {target} to build {self.build.short}, give "
            f"the traffic back to it, and remove {target.canary}"
        )
        return lines

    def climb(self, entry: JournalEntry) -> JournalEntry | RolloutResult:
        """Bring the canary up and all of the traffic to it, step by step, each held and judged."""
        weights = self.before.weights
        for step in self.context.policy.ramp:
            try:
                entry = self._canary_up(entry, step)
                entry, weights = self._give(entry, step, weights)
            except DeployError as error:
                self.context.say_why(error)
                moved = self.context.platform.weights(self.context.target) != self.before.weights
                code = ExitCode.ROLLED_BACK if moved else ExitCode.GATE_FAILED
                return roll_back(self.context, entry, str(error), code=code)
            if (end := self._hold(entry, step)) is not None:
                return end
        return entry

    def take_its_place(
        self, entry: JournalEntry, *, good: int | None
    ) -> tuple[JournalEntry, Revision] | RolloutResult:
        """Bring the release to the build, give it the traffic back, and remove the canary.

        From here on a rollback returns to revision `good`.
        """
        context, target = self.context, self.context.target
        what = f"{self._capacity} of {self._capacity} replicas on build {self.build.short}"
        try:
            self._answers(target.canary)
            entry = replace(entry, before=good or entry.before)
            entry = self._written(entry, f"{what}, while the canary has the traffic")
            revision = self._apply(entry, canary=False, replicas=self._capacity)
            self._answers(target)
            entry = self._written(entry, "traffic goes back to the release")
            shift(
                context,
                self.before.weights,
                expect=Weights.of_share(1),
                needs={target: self._capacity},
            )
            run = context.verify(target)
            if run.outcome is not Outcome.PASS:
                return roll_back(context, entry, f"it does not serve: {problems_of(run)}")
            remove_canary(context)
        except DeployError as error:
            context.say_why(error)
            return roll_back(context, entry, str(error))
        context.say(f"{target}: revision {revision.number} has the traffic", what, Outcome.PASS)
        return replace(entry, traffic=None), revision

    @property
    def _capacity(self) -> int:
        return self.context.policy.environments[self.context.target.environment].replicas

    def _canary_up(self, entry: JournalEntry, step: RampStep) -> JournalEntry:
        replicas = step.replicas_of(self._capacity)
        entry = self._written(entry, f"{replicas} canary replicas on build {self.build.short}")
        self._apply(entry, canary=True, replicas=replicas)
        return entry

    def _give(
        self, entry: JournalEntry, step: RampStep, now: Weights
    ) -> tuple[JournalEntry, Weights]:
        """Give the canary the step's share. The release keeps every replica: see `traffic`."""
        target, share = self.context.target, step.share_of(self._capacity)
        entry = self._written(
            entry, f"{format_share(share)} of the traffic on build {self.build.short}"
        )
        weights = Weights.of_share(share)
        needs = {
            target.canary: step.replicas_of(self._capacity),
            target: self.before.replicas,
        }
        shift(self.context, weights, expect=now, needs=needs)
        return entry, weights

    def _hold(self, entry: JournalEntry, step: RampStep) -> RolloutResult | None:
        """An end, if the step may not be passed."""
        share = step.share_of(self._capacity)
        both_serve = share < 1 and bool(step.hold) and self.context.policy.canary.compares
        end = CanaryAnalysis(self.context).hold(step.hold, compared=both_serve)
        if end.fired:
            return roll_back(self.context, entry, end.fired)
        if end.unobservable:
            return RolloutResult(
                code=ExitCode.UNREACHABLE,
                conclusion=f"The watch over the canary, {format_share(share)} of the traffic, went "
                f"blind ({', '.join(end.unobservable)}), and what is not seen does not go on: run "
                "gate-and-promote again, it undoes this step",
            )
        return None

    def _apply(self, entry: JournalEntry, *, canary: bool, replicas: int) -> Revision:
        context = self.context
        deployment = context.target.canary if canary else context.target
        revision = context.platform.apply(
            deployment,
            Target(build=self.build, values=self.values, replicas=replicas, capacity=replicas),
            description=f"vllm-rollout {context.run_id}: {entry.note}",
            timeout=context.policy.deploy_timeout,
        )
        same_images(context, deployment, self.build, self.images)
        context.say(f"{deployment}: revision {revision.number} is ready", outcome=Outcome.PASS)
        return revision

    def _answers(self, deployment: Deployment) -> None:
        """Return if a release's own replicas answer as well as the error rate's trigger asks."""
        limit = self.context.policy.triggers.error_rate.above
        if (share := failing(self.context, deployment)) > limit:
            raise NotCarriedError(
                f"{deployment} is ready, and fails {format_value(share, 'ratio')} of the requests"
            )

    def _written(self, entry: JournalEntry, note: str) -> JournalEntry:
        context = self.context
        context.still_ours()
        entry = context.journal.advance(entry, Phase.RAMP, note, now=context.clock.now())
        context.say(f"{context.target}: {note}")
        return entry
