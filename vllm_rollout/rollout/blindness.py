"""Episodes in which the watches of a run lack data: beginning and end of each are reported."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.rollback_triggers import Found
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.units import format_about
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.run import RunLog

_EVERY = "every trigger"


@dataclass(slots=True)
class _Episode:
    """One episode, and the triggers that were reported in it."""

    since: datetime
    reported: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Blindness:
    """The open episodes of one run's watches, by deployment; they last from watch to watch."""

    log: RunLog
    _open: dict[Deployment, _Episode] = field(default_factory=dict)

    def see(self, deployment: Deployment, found: Found, *, why: str, gap: str) -> None:
        """Take what the triggers of a watch had no data for, after an observation.

        `why` is why probes or platform have none, `gap` what Prometheus has none for, and why. What
        is missing is reported once in an episode, and its end when nothing is missing any more.
        """
        missing = {*found.blind, *found.unseen, *([_EVERY] if found.nothing else ())}
        now = self.log.now()
        if not missing:
            if episode := self._open.pop(deployment, None):
                self._over(deployment, now - episode.since)
            return
        episode = self._open.setdefault(deployment, _Episode(now))
        new = missing - episode.reported
        episode.reported |= missing
        every = _EVERY in new
        parts = []
        if found.blind and (every or new.intersection(found.blind)):
            parts.append(f": {', '.join(found.blind)}{why}")
        if found.unseen and (every or new.intersection(found.unseen)):
            parts.append(f" from Prometheus: {gap}")
        if parts:
            self._begun(deployment, ";".join(parts), every=found.nothing)

    def _begun(self, deployment: Deployment, what: str, *, every: bool) -> None:
        text = f"no data of {deployment}{what}"
        title = "the watch is blind" if every else "the watch is blind to some triggers"
        self.log.log_step(title, text, Outcome.INCONCLUSIVE)
        watch = f"The watch over {deployment.model} in {deployment.environment}"
        headline = "" if every else f"{watch} has no data for some of its triggers"
        self.log.notify(MessageKind.BLIND, text, headline=headline)

    def _over(self, deployment: Deployment, lasted: timedelta) -> None:
        text = f"every trigger over {deployment} has data again, after {format_about(lasted)}"
        self.log.log_step("the watch has its data again", text)
        self.log.notify(MessageKind.SEEN, text)
