"""Write-ahead journal of a rollout: each step is written before it is done.

One document per model, next to the releases. A run that finds it unfinished reads from it which
change was begun and where to return to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from vllm_rollout.model.deployment import Build
from vllm_rollout.model.text import all_printable
from vllm_rollout.platform.base import ConflictError, Weights
from vllm_rollout.platform.reader import StoreReader
from vllm_rollout.platform.writer import Store


class Phase(StrEnum):
    """Phase of a rollout. Everything but DONE is unfinished."""

    RAMP = "ramp"
    GATES = "gates"
    WATCH = "watch"
    ROLLBACK = "rollback"
    DONE = "done"


class Event(StrEnum):
    """An event of a rollout that is written to the journal."""

    STEP = "step"
    """The ramp takes its next step."""
    SCALED = "scaled"
    """All replicas run the build, and the target's gates come next."""
    VERIFIED = "verified"
    """All replicas run the build and serve; the environment has no users to watch over."""
    GATES_PASSED = "gates passed"
    GATES_UNSEEN = "gates unseen"
    """A gate could not know, and the policy keeps the build."""
    WATCHED = "watched"
    """The watch ended and no trigger fired."""
    ROLLBACK = "rollback"
    """A gate, a step, a trigger or a person asks for the state before."""
    UNVERIFIED = "unverified"
    """The state before is back, and the verification did not work."""
    RESTORED = "restored"
    """The state before is back and serves."""
    RESUMED = "resumed"
    """Another run found the entry unfinished."""
    YIELDED = "yielded"
    """Somebody else has changed the target, and decides about it."""
    REFUSED = "refused"
    """The change was refused before it changed anything."""
    REPLACED = "replaced"
    """Another run found the entry unfinished, and another build in the target."""


_NEXT: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.RAMP, Event.STEP): Phase.RAMP,
    (Phase.RAMP, Event.SCALED): Phase.GATES,
    (Phase.RAMP, Event.VERIFIED): Phase.DONE,
    (Phase.RAMP, Event.ROLLBACK): Phase.ROLLBACK,
    (Phase.RAMP, Event.RESUMED): Phase.ROLLBACK,
    (Phase.RAMP, Event.YIELDED): Phase.DONE,
    (Phase.RAMP, Event.REFUSED): Phase.DONE,
    (Phase.GATES, Event.GATES_PASSED): Phase.WATCH,
    (Phase.GATES, Event.GATES_UNSEEN): Phase.WATCH,
    (Phase.GATES, Event.ROLLBACK): Phase.ROLLBACK,
    (Phase.GATES, Event.RESUMED): Phase.ROLLBACK,
    (Phase.GATES, Event.YIELDED): Phase.DONE,
    (Phase.WATCH, Event.WATCHED): Phase.DONE,
    (Phase.WATCH, Event.ROLLBACK): Phase.ROLLBACK,
    (Phase.WATCH, Event.RESUMED): Phase.WATCH,
    (Phase.WATCH, Event.REPLACED): Phase.DONE,
    (Phase.WATCH, Event.YIELDED): Phase.DONE,
    (Phase.ROLLBACK, Event.ROLLBACK): Phase.ROLLBACK,
    (Phase.ROLLBACK, Event.UNVERIFIED): Phase.ROLLBACK,
    (Phase.ROLLBACK, Event.RESTORED): Phase.DONE,
    (Phase.ROLLBACK, Event.RESUMED): Phase.ROLLBACK,
    (Phase.ROLLBACK, Event.YIELDED): Phase.DONE,
}
"""Every phase that a rollout can enter, by the phase it is in and what happens."""


def next_phase(phase: Phase, event: Event) -> Phase:
    """Return the phase that follows `phase` when `event` happens."""
    return _NEXT[phase, event]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficBefore:
    """State before a ramp by traffic, to which a rollback returns.

    The weights of users' traffic, and the ready replicas by which the release carried all of it.
    """

    weights: Weights
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A build that run `run_id` has kept in `target` though gates could not know: the `unseen`.

    `before` is the revision to return to.
    """

    run_id: str
    target: str
    build: Build
    before: int | None
    unseen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """The rollout of one model, as last written.

    `before` is the target's revision to return to, None when nothing was deployed there.
    `traffic` is None where no traffic is moved. `unverified` is a rollback that was done and could
    not be verified: it is unfinished, and no run is in the middle of it. `revision` is the target's
    newest as the run had left it (0 for none), `weights` those that it had set or was about to set.
    `unseen` are the gates of a target that was kept though they could not know, `kept` what a
    rollout before this one has kept in another target.
    """

    run_id: str
    model: str
    source: str
    target: str
    build: Build
    before: int | None
    phase: Phase
    note: str
    holder: str
    started: datetime
    updated: datetime
    traffic: TrafficBefore | None = None
    revision: int | None = None
    weights: tuple[Weights, ...] = ()
    unverified: bool = False
    unseen: str = ""
    kept: Kept | None = None

    @property
    def unfinished(self) -> bool:
        """True while a run must still finish or undo it."""
        return self.phase is not Phase.DONE

    @property
    def in_progress(self) -> bool:
        """True while a run is in the middle of it, or where a run ended there."""
        return self.unfinished and not self.unverified

    @property
    def moves_traffic(self) -> bool:
        """True while it is unfinished and may have given a canary some of the traffic."""
        return self.unfinished and self.traffic is not None

    @property
    def still_kept(self) -> Kept | None:
        """The build that stays without a pass of its gates, by this rollout or one before."""
        if not self.unseen:
            return self.kept
        if self.unfinished:
            return None
        return Kept(
            run_id=self.run_id,
            target=self.target,
            build=self.build,
            before=self.before,
            unseen=self.unseen,
        )

    def keeps(self, build: Build | None, environment: str) -> Kept | None:
        """Return what is kept, if it is this build and there."""
        kept = self.still_kept
        return kept if kept and (kept.build, kept.target) == (build, environment) else None


_ADAPTER: TypeAdapter[JournalEntry] = TypeAdapter(JournalEntry)


def last_entry(store: StoreReader, model: str) -> JournalEntry | None:
    """The entry of the model's last rollout, or None."""
    entry = store.read(_key(model))
    return None if entry is None else _ADAPTER.validate_python(entry.value)


class Journal:
    """Reads and writes a model's journal with compare-and-set: two writers never mix."""

    def __init__(self, store: Store, model: str) -> None:
        self._store = store
        self._key = _key(model)
        self._version: str | None = None
        self.last: JournalEntry | None = None
        """The entry as last read or written."""

    def read(self) -> JournalEntry | None:
        """Return the last entry, or None."""
        entry = self._store.read(self._key)
        if entry is None:
            return None
        self._version = entry.version
        self.last = _ADAPTER.validate_python(entry.value)
        return self.last

    def write(self, entry: JournalEntry) -> JournalEntry:
        """Write `entry` before its step is done.

        Raises:
            ConflictError: somebody else has written since this journal was read.
        """
        value: dict[str, Any] = all_printable(_ADAPTER.dump_python(entry, mode="json"))
        try:
            self._version = self._store.write(self._key, value, expect=self._version)
        except ConflictError:
            # Written once already, if the answer to it was lost and this is the second attempt.
            found = self._store.read(self._key)
            if found is None or found.value != value:
                raise
            self._version = found.version
        self.last = entry
        return entry

    def advance(
        self, entry: JournalEntry, phase: Phase, note: str, *, now: datetime
    ) -> JournalEntry:
        """Write that `entry` enters `phase`."""
        return self.write(replace(entry, phase=phase, note=note, updated=now))


def _key(model: str) -> str:
    return f"rollout/{model}"
