"""Changes of a rollout's releases, and the journal of them, under the model's lease."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

from vllm_rollout.model.deployment import Build, Deployment, Revision, Target
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.platform.base import ForeignChangeError, Weights
from vllm_rollout.platform.writer import ReleaseWriter
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


@dataclass(slots=True, kw_only=True)
class LeasedReleases:
    """Changes the target's releases, and asks the store for the lease right before each change.

    The platform asks once more before each request (`ReleaseWriter.guard`). Reading takes
    `platform` and needs no lease. The journal is written before a change, and only while the target
    is as this run left it: a revision or a field of somebody else stops the run (`advance`).
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
    previous: str = field(default="", init=False)
    """Revision that served before the change, as text."""
    lease: HeldLease | None = field(default=None, init=False)
    _newest: int | None = field(default=None, init=False)
    """Newest revision of the target as this run left it, 0 for none; None while it is not known."""
    _fields: frozenset[str] | None = field(default=None, init=False)
    """Fields of the target that somebody else had set by then."""

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

    def recover(self) -> None:
        """Clear what a killed client left of the target half done, and log whose it was."""
        last = self.journal.last
        target = self.run.target
        moves_traffic = last is not None and last.moves_traffic
        for deployment in (target, *([target.canary] if moves_traffic else [])):
            self.ensure_lease()
            found = self.platform.recover(deployment, timeout=self.run.policy.deploy_timeout)
            if found:
                whose = self.lease.whose if self.lease else ""
                self.log.log_step(f"recovered {deployment}", found + whose)
        self._newest = self._newest_now()

    def begin(
        self, build: Build, *, before: int | None, note: str, traffic: TrafficBefore | None = None
    ) -> JournalEntry:
        """Open the journal of a change that is about to begin.

        `before` is the revision to return to, `traffic` the weights to return to, if any move.
        """
        self.ensure_lease()
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
            )
        )

    def take_over(self, entry: JournalEntry) -> JournalEntry:
        """Take over an unfinished rollout: the run that began it can no longer write the entry.

        Raises: as `ensure_lease`, and ConflictError where somebody wrote it meanwhile.
        """
        self.ensure_lease()
        self._change_begins(entry.before, entry.build)
        holder = self.lease.holder if self.lease else ""
        return self.journal.write(replace(entry, holder=holder, updated=self.log.now()))

    def advance(self, entry: JournalEntry, event: Event, note: str) -> JournalEntry:
        """Write to the journal that `event` happened, under the lease. Raises: as `take_over`, and
        as `ensure_own`."""
        self.ensure_lease()
        # A canary gives its traffic back beside whatever revision the release has.
        beside = event is Event.ROLLBACK and entry.traffic is not None
        if not beside and event not in (Event.RESTORED, Event.UNVERIFIED):
            self.ensure_own(fields=event is not Event.ROLLBACK)
        return self.close(entry, event, note)

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
            now = frozenset(self.platform.field_conflicts(self.run.target))
            if self._fields is None:
                self._fields = now
            found = "; ".join(sorted(now - self._fields))
        if found:
            raise self._yielded(
                ForeignChangeError(
                    f"Somebody else has changed {self.run.target}, and that stays: {found}",
                    remedy=f"When they are done, this starts again: {self.run.command}",
                )
            )

    @property
    def _overwrites(self) -> bool:
        return self.run.policy.kubernetes.field_conflicts == "overwrite"

    def _yielded(self, error: ForeignChangeError) -> ForeignChangeError:
        """`error`, once the journal says that the target is somebody else's."""
        entry = self.journal.last
        if entry is not None and entry.unfinished and not entry.moves_traffic:
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
        if own:
            self._newest = revision.number
            self._fields = frozenset(self.platform.field_conflicts(deployment))
        return revision

    def rollback(self, revision: int, note: str) -> Revision:
        """Return the target to `revision`. Raises: as `apply`."""
        self.ensure_lease()
        self._overwriting(revision)
        self._newest = None
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
        self.platform.uninstall(deployment, timeout=self.run.policy.deploy_timeout)

    def set_weights(self, weights: Weights, expect: Weights | None) -> None:
        """Divide the target's traffic.

        Raises: as `ReleaseWriter.set_weights` and `ensure_lease`.
        """
        self.ensure_lease()
        self.platform.set_weights(
            self.run.target, weights, expect=expect, timeout=self.run.policy.deploy_timeout
        )

    def _change_begins(self, before: int | None, build: Build) -> None:
        self.log.build = build.digest
        self.touched = self.under_way = True
        self.previous = f"revision {before}" if before else "nothing deployed"
