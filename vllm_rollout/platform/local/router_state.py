"""The state file as a router uses it: one thread reads and writes, the event loop waits for none.

While the file is locked or its disk is full, the router goes on with what it read last, and keeps
what is to be written: of each replica its newest row.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.local.gpus import Gpus
from vllm_rollout.platform.local.processes import Identity
from vllm_rollout.platform.local.state import (
    ReleaseRow,
    ReplicaRow,
    RevisionRow,
    State,
    canary_of,
)
from vllm_rollout.platform.local.values import Seat
from vllm_rollout.ports import LOOPBACK

_AGAIN_SECONDS = 1.0
_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A release as its router shall have it. `made_of` has the revision that each part names."""

    release: ReleaseRow
    revision: RevisionRow
    made_of: Mapping[int, RevisionRow]
    weights: Weights
    in_force: bool
    canary_url: str
    again: frozenset[str]
    """Ids of replicas that were given up, and that a command says to try again."""


class RouterState:
    """The rows of one release. Those put here are written soon, and tried again until they are."""

    def __init__(self, state: State, release: str) -> None:
        self._state = state
        self._release = release
        self._gpus = Gpus(state)
        self._seats: dict[str, Seat] = {}
        # One, so that what is written later is later in the file.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing = asyncio.Lock()
        self._new = asyncio.Event()
        self._rows: dict[str, ReplicaRow | None] = {}
        self._settled: int | None = None
        self._in_force: Weights | None = None
        self._taken: set[int] = set()
        self._revisions: dict[int, RevisionRow] = {}
        self._failing: dict[str, str] = {}

    @property
    def ports(self) -> set[int]:
        """The ports that releases and replicas have, as far as is known without asking."""
        queued = (row.port for row in self._rows.values() if row is not None)
        return self._taken | {port for port in queued if port is not None}

    async def read(self) -> Wanted | None:
        """Read the release as it shall be; None when it is gone or nothing of it shall run.

        Raises:
            UnreachableError: the file cannot be read now.
        """
        return await self._in_thread("read", self._read)

    async def replicas(self) -> list[tuple[ReplicaRow, RevisionRow]]:
        """The replicas of an earlier router, each with the revision that it is made of. Waits."""
        while True:
            try:
                return await self._in_thread("read", self._replicas)
            except UnreachableError:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def set_router(self, router: Identity | None) -> None:
        """Say which process is the release's router. Raises: as `read`."""
        await self._in_thread("write", lambda: self._state.set_router(self._release, router))

    def put(self, row: ReplicaRow) -> None:
        """Have the replica's row brought up to date."""
        self._rows[row.id] = row
        self._new.set()

    def delete(self, replica_id: str) -> None:
        """Have the replica forgotten; its processes must be gone."""
        self._rows[replica_id] = None
        self._new.set()

    async def take_seat(self, replica_id: str, count: Callable[[], int]) -> Seat | None:
        """Give the replica its slot, and `count` GPUs where there is a pool of them.

        None while too few are free. Its row is in the file; while that cannot be written, it has
        what it had under the earlier router.

        Raises:
            UsageError: as `count`.
        """

        def take() -> Seat | None:
            return self._gpus.take(replica_id, count() if self._gpus.pool else 0)

        try:
            return await self._in_thread("write", take)
        except UnreachableError:
            return self._seats.get(replica_id)

    async def give_back(self, replica_id: str) -> None:
        """Give the replica's GPUs back, if the file takes it; else they are when its row goes."""
        with suppress(UnreachableError):
            await self._in_thread("write", lambda: self._gpus.give_back(replica_id))

    def settle(self, revision: int | None, weights: Weights | None) -> None:
        """Have it noted that this revision is in place, and that traffic is divided so."""
        self._settled, self._in_force = revision, weights
        if revision is not None or weights is not None:
            self._new.set()

    async def keep_writing(self) -> None:
        """Write what is put here, for as long as this runs."""
        while True:
            await self._new.wait()
            try:
                written = await self.flush()
            except Exception:  # noqa: BLE001 - logged, and tried again
                _log.exception("what was to be written is tried again")
                written = False
            if not written:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def flush(self) -> bool:
        """Write all that was put here; False when the file does not take it now."""
        async with self._writing:
            self._new.clear()
            rows, self._rows = self._rows, {}
            settled, in_force = self._settled, self._in_force
            self._settled = self._in_force = None
            if not rows and settled is None and in_force is None:
                return True
            try:
                await self._in_thread("write", lambda: self._write(rows, settled, in_force))
            except BaseException as error:
                self._rows = rows | self._rows
                self._new.set()
                if isinstance(error, UnreachableError):
                    return False
                raise
            return True

    async def _in_thread(self, what: str, work: Callable[[], _T]) -> _T:
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except UnreachableError as error:
            if self._failing.get(what) != str(error):
                _log.warning("cannot %s, tried again until it works: %s", what, error)
            self._failing[what] = str(error)
            raise
        if self._failing.pop(what, None) is not None:
            _log.info("the state file is %s again", {"read": "read", "write": "written"}[what])
        return done

    def _read(self) -> Wanted | None:
        self._taken = self._state.ports()
        release = self._state.release(self._release)
        if release is None or release.desired is None:
            return None
        revision = self._revision(release.desired)
        parts = revision.composition.parts
        made_of = {part.revision: self._revision(part.revision) for part in parts}
        self._revisions = made_of | {revision.number: revision}
        weights = self._state.weights(release.name)
        canary = self._state.release(canary_of(release.name)) if weights.canary else None
        return Wanted(
            release=release,
            revision=revision,
            made_of=made_of,
            weights=weights,
            in_force=self._state.weights_in_force(release.name),
            canary_url=f"http://{LOOPBACK}:{canary.port}" if canary else "",
            again=self._state.replicas_to_try_again(release.name),
        )

    def _replicas(self) -> list[tuple[ReplicaRow, RevisionRow]]:
        rows = self._state.replicas(self._release)
        self._seats = {row.id: seat for row in rows if (seat := self._gpus.seat(row.id))}
        return [(row, self._revision(row.revision)) for row in rows]

    def _revision(self, number: int) -> RevisionRow:
        # What a router reads of a revision never changes.
        revision = self._revisions.get(number) or self._state.revision(self._release, number)
        if revision is None:
            raise RuntimeError(f"{self._release}: revision {number} is gone, which is in use")
        return revision

    def _write(
        self,
        rows: Mapping[str, ReplicaRow | None],
        settled: int | None,
        in_force: Weights | None,
    ) -> None:
        try:
            with self._state.database.transaction():
                for replica_id, row in rows.items():
                    if row is None:
                        self._state.delete_replica(replica_id)
                    else:
                        self._state.put_replica(row)
                if settled is not None:
                    self._state.settle(self._release, settled)
                if in_force is not None:
                    self._state.enforce_weights(self._release, in_force)
        except sqlite3.IntegrityError:
            _log.warning("%s is gone: nothing is written of its replicas", self._release)
