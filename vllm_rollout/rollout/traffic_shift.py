"""Moves users' traffic between a release and its canary, never to a side that cannot carry it.

The stable release keeps all its replicas for as long as the canary has any traffic, so that all of
it can be taken back at any moment. Weights and replicas to return to are in the journal before the
first of them is changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.model.units import format_share, format_value, of_total
from vllm_rollout.next_command import release_command
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.journal import JournalEntry, TrafficBefore
from vllm_rollout.rollout.leased_releases import LeasedReleases
from vllm_rollout.rollout.leased_run import RunTools
from vllm_rollout.rollout.observer import DeploymentObserver
from vllm_rollout.rollout.run import RunLog

Needs = Mapping[Deployment, int]
"""Ready replicas that each side must have."""


class NotCarriedError(DeployError):
    """A side has too few ready replicas, or fails too many requests, for its new traffic."""


def traffic_before(
    platform: ReleaseReader, policy: Policy, target: Deployment
) -> TrafficBefore | None:
    """Return the state from which a ramp by traffic starts; None if the target has no such ramp.

    It has none where the policy does not ask for it, the environment has no users, or nothing
    serves them: then there is no traffic to move.

    Raises:
        UsageError: the policy asks for it, and it cannot begin: nothing divides the traffic, or the
            target is not in the state in which a ramp starts.
    """
    if not policy.ramps_by_traffic(target.environment):
        return None
    serving = newest_served(platform.history(target))
    if serving is None:
        return None
    if scalers := platform.autoscaled_by(target):
        raise UsageError(
            f"{target} is scaled by {', '.join(scalers)}, which would take away its replicas while "
            "the canary has their traffic",
            remedy="Ramp it by replicas (`canary.by: replicas`), or without the autoscaler.",
        )
    weights = platform.weights(target)
    if not serving.complete:
        raise UsageError(
            f"{target} is half way in a ramp by replicas: {serving.replicas} of {serving.capacity}",
            remedy="Return to a complete revision first: " + release_command("rollback", target),
        )
    if weights.canary_share:
        raise UsageError(
            f"{format_share(weights.canary_share)} of the traffic of {target} goes to a canary "
            "that no rollout of this suite brought up",
            remedy="Give all of it to the release itself first.",
        )
    if platform.history(target.canary):
        raise UsageError(
            f"there is a release {target.canary.release} already, of no rollout of this suite",
            remedy="Remove it first; no traffic goes to it.",
        )
    return TrafficBefore(weights=weights, replicas=serving.capacity)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShift:
    """Moves the traffic of `target`, release and canary."""

    target: Deployment
    policy: Policy
    releases: LeasedReleases
    observer: DeploymentObserver
    log: RunLog

    @classmethod
    def of(cls, tools: RunTools) -> Self:
        """Move the traffic of the run's target."""
        return cls(
            target=tools.run.target,
            policy=tools.run.policy,
            releases=tools.releases,
            observer=tools.observer,
            log=tools.log,
        )

    def shift(self, weights: Weights, *, expect: Weights, needs: Needs) -> None:
        """Divide the traffic once both sides have the replicas it takes, and check them again.

        Raises:
            NotCarriedError: a side has not, within the deployment's time, or has not any more.
            ForeignWeightsError: somebody else has changed the weights.
            WeightsChangedError: they do not take effect.
        """
        clock = self.log.clock
        until = clock.monotonic() + self.policy.deploy_timeout_seconds
        while short := self._short(needs):
            if clock.monotonic() >= until:
                raise NotCarriedError(f"no traffic was moved: {short}")
            self.log.reporter.progress(f"traffic waits: {short}")
            clock.sleep(self.policy.watch.interval)
        self._divide(weights, expect)
        if short := self._short(needs):
            raise NotCarriedError(f"traffic was moved, and now {short}")

    def give_back(self, entry: JournalEntry, *, note: str) -> None:
        """Return the release and its traffic to the state before the ramp; the canary stays.

        A release that was changed is brought back first, while the canary has its traffic. Then the
        canary loses as much as the ready replicas of the release can carry, until that is all.

        Raises:
            NotCarriedError: they could not carry all of it in time; the rest stays with the canary.
            DeployError, UsageError: the release or the weights cannot be changed.
        """
        if entry.traffic is None:
            raise AssertionError("no traffic was moved")
        self._bring_back(entry, note)
        before, clock = entry.traffic, self.log.clock
        started = clock.monotonic()
        while (now := self._weights()) != before.weights:
            worse = self._answers_worse() if now.canary_share else ""
            share = 0.0 if not now.canary_share else self._left_to_canary(before.replicas)
            if not worse and share == 0:
                return self._divide(before.weights, None)
            if not worse and share < now.canary_share:
                self._divide(Weights.of_share(share), None)
            waited = clock.monotonic() - started
            # More replicas take their time to come up; better answers are not waited for as long.
            if waited >= (
                self.policy.triggers.window_seconds if worse else self.policy.deploy_timeout_seconds
            ):
                share = self._weights().canary_share
                why = worse or self._short({self.target: before.replicas})
                raise NotCarriedError(
                    f"{format_share(share)} of the traffic stays with a canary: {why}"
                )
            self.log.reporter.progress(
                f"traffic waits to go back: {worse or 'replicas are not ready'}"
            )
            clock.sleep(self.policy.watch.interval)
        return None

    def remove_canary(self) -> None:
        """Remove the canary's release. Removing nothing is no error.

        Raises:
            NotCarriedError: it still has traffic, or no replica of the release is ready.
            DeployError, UnreachableError: the platform does not remove it.
        """
        canary = self.target.canary
        if not self.releases.platform.history(canary):
            return
        if share := self._weights().canary_share:
            raise NotCarriedError(f"the canary stays: it has {format_share(share)} of the traffic")
        if not self._ready(self.target):
            raise NotCarriedError(f"the canary stays: no replica of {self.target} is ready")
        self.releases.uninstall(canary)

    def _weights(self) -> Weights:
        return self.releases.platform.weights(self.target)

    def _ready(self, deployment: Deployment) -> int:
        return sum(replica.ready for replica in self.releases.platform.replicas(deployment))

    def _bring_back(self, entry: JournalEntry, note: str) -> None:
        history = self.releases.platform.history(self.target)
        serving = newest_served(history)
        builds = {revision.number: revision.build for revision in history}
        if entry.before is None or (
            serving is not None and serving.complete and serving.build == builds.get(entry.before)
        ):
            return
        if foreign := self.releases.foreign_revision():
            self.log.log_step("the release itself is left as it is", foreign)
            return
        self.releases.rollback(entry.before, note)

    def _divide(self, weights: Weights, expect: Weights | None) -> None:
        self.releases.set_weights(weights, expect)
        share = format_share(weights.canary_share)
        self.log.log_step(f"{share} of the traffic of {self.target} goes to the canary")

    def _short(self, needs: Needs) -> str:
        """Return the sides with fewer ready replicas than they need, as text; or ""."""
        found = {deployment: self._ready(deployment) for deployment in needs}
        return "; ".join(
            f"{deployment} has {of_total(found[deployment], needed, 'replica')} ready"
            for deployment, needed in needs.items()
            if found[deployment] < needed
        )

    def _left_to_canary(self, replicas: int) -> float:
        """Return the share that the release cannot carry and the canary can; a fraction.

        Traffic that neither can carry is the release's: a canary without ready replicas loses all
        of it at once.
        """
        stable = self._ready(self.target)
        if not stable:
            return 1.0
        return max(0.0, min(replicas - stable, self._ready(self.target.canary))) / replicas

    def _answers_worse(self) -> str:
        """Return why traffic stays with the canary, as text; or "".

        It stays while the release's own replicas fail more than a trigger allows, and more than the
        canary's.
        """
        stable = self.observer.failing_share(self.target)
        if stable <= self.policy.triggers.error_rate.above:
            return ""
        canary = self.observer.failing_share(self.target.canary)
        if stable <= canary:
            return ""
        return (
            f"{self.target} fails {format_value(stable, 'ratio')} of the requests, "
            f"the canary {format_value(canary, 'ratio')}"
        )
