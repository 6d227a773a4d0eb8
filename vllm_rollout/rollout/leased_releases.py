"""Changes of a rollout's releases, and the journal of them, under the model's lease."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

from vllm_rollout.model.deployment import Build, Deployment, Revision, RevisionStatus, Target
from vllm_rollout.model.errors import DeployError, RolloutError, UnreachableError
from vllm_rollout.next_command import release_command
from vllm_rollout.platform.base import (
    ForeignChangeError,
    ForeignWeightsError,
    LiveObjects,
    Weights,
    changed_objects,
    paused_objects,
)
from vllm_rollout.platform.writer import ReleaseWriter
from vllm_rollout.policy.notifications import MessageKind
from vllm_rollout.rollout.journal import (
    Event,
    Journal,
    JournalEntry,
    Phase,
    TrafficBefore,
    next_phase,
)
from vllm_rollout.rollout.lease import TTL, HeldLease, hold
from vllm_rollout.rollout.run import Run, RunLog

_FORWARD = (Event.STEP, Event.SCALED, Event.GATES_PASSED, Event.GATES_UNSEEN)


@dataclass(slots=True, kw_only=True)
class LeasedReleases:
    """Changes the target's releases, and asks the store for the lease right before each change.

    The platform asks once more before each request (`ReleaseWriter.guard`). Reading takes
    `platform` and needs no lease. The journal is written before a change, and only while the target
    is as this run left it: a revision, a field or a weight of somebody else stops it (`advance`).
    """

    run: Run
    platform: ReleaseWriter
    journal: Journal
    log: RunLog
    lease_ttl: timedelta = TTL
    touched: bool = field(default=False, init=False)
    """True once the target was changed, or was about to be."""
    under_way: bool = field(default=False, init=False)
    """True if the run ends with that change; what it undid first, for another, does not count."""
    changed: bool = field(default=False, init=False)
    """True once this run has changed anything, or may have."""
    previous: str = field(default="", init=False)
    """Revision that served before the change, as text."""
    lease: HeldLease | None = field(default=None, init=False)
    _newest: int | None = field(default=None, init=False)
    """Newest revision of the target as this run left it, 0 for none; None while it is not known."""
    _fields: frozenset[str] | None = field(default=None, init=False)
    """Fields of the target that somebody else had set by then."""
    _objects: LiveObjects | None = field(default=None, init=False)
    """What ran the replicas of target and canary then; None while it is not known."""
    _weights: Weights | None = field(default=None, init=False)
    """How the traffic was divided then; None where this run divides none."""

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Hold the model's lease for the length of a `with` block.

        Raises: as `hold`.
        """
        with hold(
            self.platform.store,
            self.run.target.model,
            clock=self.log.clock,
            on_wait=lambda text: self.log.log_step("waiting for the lease", text),
            ttl=self.lease_ttl,
        ) as held:
            self.lease = held
            self.platform.guard(held)
            yield

    def ensure_lease(self) -> None:
        """Return only if the store confirms now that this run holds the model's lease.

        Raises:
            LeaseLostError: it does not.
            UnreachableError: the store does not answer.
        """
        if self.lease is None:
            raise AssertionError("a change without the lease")
        self.lease.ensure()

    def recover(self) -> bool:
        """Clear what a killed client left of the target half done, and log whose it was.

        Returns True if there was anything.
        """
        any_found = False
        last = self.journal.last
        target = self.run.target
        moves_traffic = last is not None and last.moves_traffic
        for deployment in (target, *([target.canary] if moves_traffic else [])):
            self.ensure_lease()
            found = self.platform.recover(deployment, timeout=self.run.policy.deploy_timeout)
            if found:
                any_found = True
                whose = self.lease.whose if self.lease else ""
                self.log.log_step(f"recovered {deployment}", found + whose)
        self._newest = self._newest_now()
        return any_found

    def begin(
        self, build: Build, *, before: int | None, note: str, traffic: TrafficBefore | None = None
    ) -> JournalEntry:
        """Open the journal of a change that is about to begin.

        `before` is the revision to return to, `traffic` the weights to return to, if any move.
        """
        self.ensure_lease()
        kept = self.journal.last.still_kept if self.journal.last else None
        if kept is not None and kept.target == self.run.target.environment:
            text = (
                f"build {kept.build.short}, kept by {kept.run_id} though not all was seen, is left"
            )
            self.log.notify(MessageKind.SETTLED, f"{text}: {note}")
            kept = None
        self._change_begins(before, build)
        self._newest = self._newest_now()
        now = self.log.now()
        return self.journal.write(
            JournalEntry(
                run_id=self.run.id,
                model=self.run.target.model,
                source=self.run.source.environment,
                target=self.run.target.environment,
                build=build,
                before=before,
                phase=Phase.RAMP,
                note=note,
                holder=self.lease.holder if self.lease else "",
                started=now,
                updated=now,
                traffic=traffic,
                revision=self._newest,
                weights=(traffic.weights,) if traffic else (),
                kept=kept,
            )
        )

    def take_over(self, entry: JournalEntry) -> JournalEntry:
        """Take over an unfinished rollout: the run that began it can no longer write the entry.

        Raises: as `ensure_lease`, and ConflictError where somebody wrote it meanwhile.
        """
        self.ensure_lease()
        self.log.rollout = entry.run_id
        self._change_begins(entry.before, entry.build)
        holder = self.lease.holder if self.lease else ""
        return self.journal.write(replace(entry, holder=holder, updated=self.log.now()))

    def advance(self, entry: JournalEntry, event: Event, note: str) -> JournalEntry:
        """Write to the journal that `event` happened, under the lease. Raises: as `take_over`, and
        as `ensure_own`."""
        self.ensure_lease()
        if event is Event.STEP and self._weights is None and entry.traffic is not None:
            self._weights = entry.traffic.weights  # the ramp begins
        # A canary gives its traffic back beside whatever revision the release has.
        beside = event is Event.ROLLBACK and entry.traffic is not None
        if not beside and event not in (Event.RESTORED, Event.UNVERIFIED):
            self.ensure_own(fields=event is not Event.ROLLBACK)
        entry = self.close(replace(entry, revision=self._newest), event, note)
        if event in _FORWARD:
            self.log.announce_step(note)
        return entry

    def ensure_not_paused(self) -> None:
        """Return if the target can be changed at all.

        Raises:
            ForeignChangeError: somebody has paused it.
        """
        if self._overwrites:
            return
        if found := "; ".join(paused_objects(self.platform.live_objects(self.run.target))):
            raise ForeignChangeError(
                f"{self.run.target} cannot be changed, as somebody has paused it: {found}",
                remedy="`kubectl rollout resume` lets it change again; or set "
                "`kubernetes.field_conflicts: overwrite`.",
            )

    def ensure_idle(self) -> None:
        """Return if nobody is changing the target at this moment.

        Raises:
            ForeignChangeError: its newest revision is under way, and not by this run.
        """
        history = self.platform.history(self.run.target)
        if history and (newest := history[-1]).status is RevisionStatus.PENDING:
            raise ForeignChangeError(
                f"Somebody else is changing {self.run.target}: its revision {newest.number} is "
                f"under way since {newest.created:%Y-%m-%d %H:%M:%S %Z}",
                remedy="Wait until it ends. If whoever made it was killed, this goes back: "
                + release_command("rollback", self.run.target),
            )

    def ensure_left(self, entry: JournalEntry) -> None:
        """Return if the target is as the run of `entry`, which has ended, left it.

        Changes that this run had begun are its own. Fields are compared with what Helm applied, as
        what was there is not known any more; a rollback that goes on takes them.

        Raises: as `ensure_own`.
        """
        self._newest, self._weights = entry.revision, None
        history = self.platform.history(self.run.target)
        found = foreign = _made_since(history, entry)
        newest = history[-1] if history else None
        up = newest is not None and newest.status is RevisionStatus.DEPLOYED
        rolls_back = entry.phase is Phase.ROLLBACK
        if not found and up and not rolls_back and not self._overwrites:
            found = "; ".join(
                [
                    *self.platform.field_conflicts(self.run.target),
                    *self.platform.running_differences(self.run.target),
                ]
            )
        if found:
            if not foreign:
                self._newest = newest.number if newest else 0
            raise self._foreign(found)
        if entry.traffic is not None and entry.weights and not rolls_back:
            now = self.platform.weights(self.run.target)
            if now not in entry.weights:
                raise self._foreign_weights(now.foreign(entry.weights[-1]))

    def foreign_revision(self) -> str:
        """Return the target's newest revision if somebody else made it, as text; or ""."""
        if self._newest is None:
            return ""
        target = self.run.target
        history = self.platform.history(target)
        newest = history[-1] if history else None
        if (newest.number if newest else 0) == self._newest:
            return ""
        left = f"revision {self._newest}" if self._newest else "nothing"
        now = f"revision {newest.number}, {newest.description!r}" if newest else "nothing deployed"
        return f"{target} has {now}, where this run left {left}"

    def ensure_own(self, *, fields: bool = True) -> None:
        """Return if the target is as this run's last step left it, its `fields` too.

        Raises:
            ForeignChangeError: somebody else has changed it. The journal is closed, and nothing is
                undone, unless there is a canary to be removed.
        """
        found = self.foreign_revision()
        if fields and not found and not self._overwrites:
            found = self._foreign_fields()
        if found:
            raise self._foreign(found)
        if fields and self._weights is not None:
            now = self.platform.weights(self.run.target)
            if now != self._weights:
                raise self._foreign_weights(now.foreign(self._weights))

    def _foreign_fields(self) -> str:
        """Return what of target and canary somebody else has set since this run left it, or ""."""
        objects = self.platform.live_objects(self.run.target)
        if self._objects is None:
            self._objects = objects
        if lines := changed_objects(self._objects, objects):
            return "; ".join(lines)
        fields = frozenset(self.platform.field_conflicts(self.run.target))
        if self._fields is None:
            self._fields = fields
        return "; ".join(sorted(fields - self._fields))

    def _foreign(self, found: str) -> ForeignChangeError:
        return self._yielded(
            ForeignChangeError(
                f"Somebody else has changed {self.run.target}, and that stays: {found}",
                remedy=f"When they are done, this starts again: {self.run.command}",
            )
        )

    def _foreign_weights(self, found: str) -> ForeignChangeError:
        return self._yielded(
            ForeignWeightsError(
                f"Somebody else divides the traffic of {self.run.target}, and that stays, as does "
                f"its canary: {found}",
                remedy="When all of it goes to the release itself and the canary is removed, this "
                f"starts again: {self.run.command}",
            )
        )

    @property
    def _overwrites(self) -> bool:
        return self.run.policy.kubernetes.field_conflicts == "overwrite"

    def _yielded(self, error: ForeignChangeError) -> ForeignChangeError:
        """`error`, once the journal says that the target is somebody else's."""
        entry = self.journal.last
        if (
            entry is not None
            and entry.unfinished
            and (isinstance(error, ForeignWeightsError) or not entry.moves_traffic)
        ):
            self.close(entry, Event.YIELDED, f"left to somebody else: {error}")
        return error

    def _newest_now(self) -> int:
        history = self.platform.history(self.run.target)
        return history[-1].number if history else 0

    def _overwriting(self, revision: int | None) -> None:
        """Log the fields of `revision` (None: the newest) that a change takes from others."""
        with suppress(RolloutError):  # the change does not depend on it
            if found := self.platform.field_conflicts(self.run.target, revision):
                self.log.log_step("overwriting what somebody else has set", "; ".join(found))

    def close(self, entry: JournalEntry, event: Event, note: str) -> JournalEntry:
        """Write the last event; nothing is changed after it, so compare-and-set is enough.

        Raises:
            ConflictError: somebody else has written the journal.
        """
        phase = next_phase(entry.phase, event)
        return self.journal.advance(entry, phase, note, now=self.log.now())

    def apply(self, deployment: Deployment, target: Target, note: str) -> Revision:
        """Bring a release to `target`. Raises: as `ReleaseWriter.apply` and `ensure_lease`."""
        self.ensure_lease()
        own = deployment == self.run.target
        if own and self._overwrites:
            self._overwriting(None)
        newest, self._newest = self._newest, None if own else self._newest
        changed, self.changed = self.changed, True
        try:
            revision = self.platform.apply(
                deployment,
                target,
                description=f"vllm-rollout {self.run.id}: {note}",
                timeout=self.run.policy.deploy_timeout,
            )
        except ForeignChangeError as error:
            self._newest = newest
            raise self._yielded(error) from error
        except (DeployError, UnreachableError):
            with suppress(RolloutError):  # else it may have changed
                if own and self._newest_now() == newest:
                    self._newest, self.changed = newest, changed
            raise
        if own:
            self._newest = revision.number
            self._fields = frozenset(self.platform.field_conflicts(deployment))
        self._objects = self.platform.live_objects(self.run.target)
        return revision

    def rollback(self, revision: int, note: str) -> Revision:
        """Return the target to `revision`. Raises: as `apply`."""
        self.ensure_lease()
        self._overwriting(revision)
        self.changed, self._newest, self._objects = True, None, None
        restored = self.platform.rollback(
            self.run.target,
            revision,
            description=f"vllm-rollout {self.run.id}: {note}"[:200],
            timeout=self.run.policy.deploy_timeout,
        )
        self._newest = restored.number
        return restored

    def uninstall(self, deployment: Deployment) -> None:
        """Remove a release. Raises: as `apply`."""
        self.ensure_lease()
        if deployment == self.run.target:
            self._newest = None
        self.changed, self._objects = True, None
        self.platform.uninstall(deployment, timeout=self.run.policy.deploy_timeout)

    def set_weights(self, weights: Weights, expect: Weights | None) -> None:
        """Divide the target's traffic; without `expect`, over what somebody else has set.

        Raises: as `ReleaseWriter.set_weights`, `ensure_lease` and `ensure_own`.
        """
        self.ensure_lease()
        if expect is None and self._weights is not None:
            now = self.platform.weights(self.run.target)
            if now != self._weights:
                self.log.log_step(
                    "overwriting what somebody else has set", now.foreign(self._weights)
                )
        self.changed = True
        try:
            self.platform.set_weights(
                self.run.target, weights, expect=expect, timeout=self.run.policy.deploy_timeout
            )
        except ForeignWeightsError as error:
            raise self._foreign_weights(str(error)) from error
        self._weights = weights

    def _change_begins(self, before: int | None, build: Build) -> None:
        self.log.build = build.digest
        self.touched = self.under_way = True
        self.previous = f"revision {before}" if before else "nothing deployed"


def _made_since(history: Sequence[Revision], entry: JournalEntry) -> str:
    """Return the first revision that neither the run of `entry` nor another of the suite made since
    the entry was written, as text; or "".

    Helm 3 describes a rollback itself. It is the suite's in its phase, or where a step had failed.
    """
    if entry.revision is None:  # of an earlier version
        return ""
    failed = entry.phase is Phase.ROLLBACK
    if failed and entry.before is None and not history:
        return ""
    if entry.revision and entry.revision not in {each.number for each in history}:
        return f"revision {entry.revision} is gone"
    for each in history:
        if each.number <= entry.revision:
            continue
        unfinished = each.status in (RevisionStatus.FAILED, RevisionStatus.PENDING)
        own = each.description.startswith("vllm-rollout")
        if not (own or unfinished or (failed and each.description.startswith("Rollback to "))):
            return (
                f"revision {each.number}, {each.description!r}, where that run left revision "
                + str(entry.revision)
            )
        failed = failed or unfinished
    return ""
