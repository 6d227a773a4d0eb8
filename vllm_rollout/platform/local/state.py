"""Releases, revisions and replicas as rows of the state file: typed access, no decisions."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, RevisionStatus
from vllm_rollout.platform.base import Weights
from vllm_rollout.platform.local.composition import Composition
from vllm_rollout.platform.local.database import Database
from vllm_rollout.platform.local.processes import Identity, is_running
from vllm_rollout.ports import LOOPBACK, free_port

ALL_STABLE = Weights(stable=1)
_IN_USE = (RevisionStatus.DEPLOYED, RevisionStatus.PENDING)

_DRAIN_SECONDS = 60.0
"""For a release that was made before there was a setting of it."""
# Its columns by name: a newer version may have more.
_RELEASE = """
SELECT name, model, port, desired, settled, startup_timeout_seconds, max_restarts, router_pid,
    router_created, coalesce(seconds, ?) AS drain_seconds
FROM releases LEFT JOIN drains ON drains.release = releases.name WHERE name = ?
"""

GIVEN_UP = "Failed"
"""Phase of a replica that is not started again."""
AGAIN = "Restarting"
"""Phase that a command writes for one that was given up: its router is to try again."""
LEAVING = "Terminating"
"""Phase of a replica that gets no new requests and will be ended."""


def name_of(deployment: Deployment) -> str:
    """Return the release's name in the state file; no name has a dot, so no two are the same."""
    return f"{deployment.namespace}.{deployment.release}"


def canary_of(name: str) -> str:
    """Return what `name_of` gives the canary of the deployment to which it gives `name`."""
    return f"{name}-canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """A release. `desired`: revision to run. `settled`: revision fully in place."""

    name: str
    model: str
    port: int
    desired: int | None
    settled: int | None
    startup_timeout_seconds: float
    max_restarts: int
    drain_seconds: float
    router: Identity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionRow:
    """A revision, what its build was made of and which process (`client`) makes it."""

    number: int
    status: RevisionStatus
    created: datetime
    description: str
    build: Build
    values: Mapping[str, Any]
    composition: Composition
    client: Identity

    def public(self) -> Revision:
        """As the rest of the suite knows it."""
        return Revision(
            number=self.number,
            build=self.build,
            status=self.status,
            created=self.created,
            description=self.description,
            replicas=self.composition.head.replicas,
            capacity=self.composition.capacity,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRow:
    """A replica. The row is there before its process, and until its last process is gone."""

    id: str
    release: str
    name: str
    build: str
    revision: int
    phase: str = "Pending"
    ready: bool = False
    restarts: int = 0
    reason: str = ""
    message: str = ""
    port: int | None = None
    process: Identity | None = None

    @property
    def address(self) -> str:
        """The replica's own URL, without a trailing slash; empty before it has a port."""
        return "" if self.port is None else f"http://{LOOPBACK}:{self.port}"

    def public(self) -> Replica:
        """As the rest of the suite knows it. One whose process has ended is not ready."""
        gone = self.ready and not is_running(self.process)
        return Replica(
            name=self.name,
            phase=self.phase,
            ready=self.ready and not gone,
            restarts=self.restarts,
            build=self.build,
            reason="ProcessGone" if gone else self.reason,
            message="its process has ended since it was noted as ready" if gone else self.message,
            address=self.address,
        )


class State:
    """Typed access to the rows. Several calls are one change inside `database.transaction()`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def releases(self) -> list[str]:
        """The names of all releases, sorted."""
        return [row["name"] for row in self.database.rows("SELECT name FROM releases ORDER BY 1")]

    def release(self, name: str) -> ReleaseRow | None:
        """The release, or None."""
        row = self.database.row(_RELEASE, (_DRAIN_SECONDS, name))
        if row is None:
            return None
        fields = dict(row)
        router = _identity(fields.pop("router_pid"), fields.pop("router_created"))
        return ReleaseRow(**fields, router=router)

    def put_release(
        self,
        name: str,
        model: str,
        *,
        startup_timeout_seconds: float,
        max_restarts: int,
        drain_seconds: float,
    ) -> None:
        """Add the release with a port of its own, or renew the limits of the one there is."""
        limits = (startup_timeout_seconds, max_restarts)
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO releases (name, model, port, startup_timeout_seconds, max_restarts)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " startup_timeout_seconds = excluded.startup_timeout_seconds,"
                " max_restarts = excluded.max_restarts",
                (name, model, free_port(self.ports()), *limits),
            )
            self.database.execute(
                "INSERT INTO drains VALUES (?, ?) ON CONFLICT (release) DO UPDATE"
                " SET seconds = excluded.seconds",
                (name, drain_seconds),
            )

    def ports(self) -> set[int]:
        """The ports that releases and replicas have."""
        sql = "SELECT port FROM releases UNION SELECT port FROM replicas WHERE port IS NOT NULL"
        return {row["port"] for row in self.database.rows(sql)}

    def weights(self, name: str) -> Weights:
        """Return the desired weights of the release's traffic; by default all of it is its own."""
        row = self.database.row("SELECT stable, canary FROM traffic WHERE release = ?", (name,))
        return ALL_STABLE if row is None else Weights(stable=row["stable"], canary=row["canary"])

    def put_weights(self, name: str, weights: Weights) -> None:
        """Ask the release's router to divide its traffic so."""
        self.database.execute(
            "INSERT INTO traffic VALUES (?, ?, ?, 0) ON CONFLICT (release) DO UPDATE"
            " SET stable = excluded.stable, canary = excluded.canary, in_force = 0",
            (name, weights.stable, weights.canary),
        )

    def weights_in_force(self, name: str) -> bool:
        """Return True if the router has confirmed the latest weights, or was never given any."""
        row = self.database.row("SELECT in_force FROM traffic WHERE release = ?", (name,))
        return row is None or bool(row["in_force"])

    def enforce_weights(self, name: str, weights: Weights) -> None:
        """Note that the router divides traffic so, unless it is asked for something else by now."""
        self.database.execute(
            "UPDATE traffic SET in_force = 1 WHERE release = ? AND stable = ? AND canary IS ?",
            (name, weights.stable, weights.canary),
        )

    def delete_release(self, name: str) -> None:
        """Remove the release and its revisions; refused by the schema while it has replicas."""
        self.database.execute("DELETE FROM releases WHERE name = ?", (name,))

    def set_router(self, name: str, router: Identity | None) -> bool:
        """Say which process is the release's router: nothing is in place until it says so.

        False when the release is gone.
        """
        pid, created = (None, None) if router is None else (router.pid, router.created)
        sql = (
            "UPDATE releases SET router_pid = ?, router_created = ?, settled = NULL WHERE name = ?"
        )
        return self.database.execute(sql, (pid, created, name)) == 1

    def desire(self, name: str, revision: int | None) -> None:
        """Ask the router for the composition of `revision` (None: nothing shall run)."""
        sql = "UPDATE releases SET desired = ?, settled = NULL WHERE name = ?"
        self.database.execute(sql, (revision, name))

    def settle(self, name: str, revision: int) -> None:
        """Note that `revision` is in place, unless another is desired by now."""
        sql = "UPDATE releases SET settled = desired WHERE name = ? AND desired = ?"
        self.database.execute(sql, (name, revision))

    def revisions(self, name: str) -> list[RevisionRow]:
        """All revisions of a release, oldest first."""
        sql = "SELECT * FROM revisions WHERE release = ? ORDER BY number"
        return [_revision(row) for row in self.database.rows(sql, (name,))]

    def revision(self, name: str, number: int) -> RevisionRow | None:
        """One revision, or None."""
        sql = "SELECT * FROM revisions WHERE release = ? AND number = ?"
        row = self.database.row(sql, (name, number))
        return None if row is None else _revision(row)

    def add_revision(self, name: str, row: RevisionRow) -> None:
        """Add a revision to the history."""
        self.database.execute(
            "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                name,
                row.number,
                row.status,
                row.created.isoformat(),
                row.description,
                json.dumps(asdict(row.build)),
                json.dumps(dict(row.values)),
                json.dumps(row.composition.to_json()),
                row.client.pid,
                row.client.created,
            ),
        )

    def forget_revisions(self, name: str, *, before: int) -> None:
        """Remove older revisions than `before` but those in use, or whose values are."""
        used = {row.revision for row in self.replicas(name)}
        for row in self.revisions(name):
            if row.number >= before or row.status in _IN_USE:
                used |= {row.number, *(part.revision for part in row.composition.parts)}
        sql = (
            "DELETE FROM revisions WHERE release = ? AND number < ?"
            " AND number NOT IN (SELECT value FROM json_each(?))"
        )
        self.database.execute(sql, (name, before, json.dumps(sorted(used))))

    def set_status(self, name: str, number: int, status: RevisionStatus) -> None:
        """Change the status of one revision."""
        sql = "UPDATE revisions SET status = ? WHERE release = ? AND number = ?"
        self.database.execute(sql, (status, name, number))

    def replicas(self, name: str) -> list[ReplicaRow]:
        """All replicas of a release in the order in which they were added."""
        sql = "SELECT * FROM replicas WHERE release = ? ORDER BY rowid"
        return [_replica(row) for row in self.database.rows(sql, (name,))]

    def members(self, name: str) -> list[ReplicaRow]:
        """The replicas of a release, those about to leave aside."""
        return [row for row in self.replicas(name) if row.phase != LEAVING]

    def replicas_to_try_again(self, name: str) -> frozenset[str]:
        """Return the ids of those that were given up and are to be tried again."""
        sql = "SELECT id FROM replicas WHERE release = ? AND phase = ?"
        return frozenset(row["id"] for row in self.database.rows(sql, (name, AGAIN)))

    def put_replica(self, row: ReplicaRow) -> None:
        """Add the replica, or bring its row up to date."""
        pid, created = (
            (None, None) if row.process is None else (row.process.pid, row.process.created)
        )
        self.database.execute(
            "INSERT INTO replicas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, ready = excluded.ready,"
            " restarts = excluded.restarts, reason = excluded.reason, message = excluded.message,"
            " port = excluded.port, pid = excluded.pid, created = excluded.created",
            (
                row.id,
                row.release,
                row.name,
                row.build,
                row.revision,
                row.phase,
                row.ready,
                row.restarts,
                row.reason,
                row.message,
                row.port,
                pid,
                created,
            ),
        )

    def delete_replica(self, replica_id: str) -> None:
        """Forget a replica; its processes must be gone."""
        self.database.execute("DELETE FROM replicas WHERE id = ?", (replica_id,))


def open_state(state_dir: Path, *, durable: bool = True) -> State:
    """The state kept in `state_dir`, which is made if it is not there.

    Raises: as `Database`.
    """
    return State(Database(state_dir / "state.db", durable=durable))


def _identity(pid: int | None, created: float | None) -> Identity | None:
    return None if pid is None or created is None else Identity(pid, created)


def _revision(row: sqlite3.Row) -> RevisionRow:
    return RevisionRow(
        number=row["number"],
        status=RevisionStatus(row["status"]),
        created=datetime.fromisoformat(row["created"]),
        description=row["description"],
        build=Build(**json.loads(row["build"])),
        values=json.loads(row["made_of"]),
        composition=Composition.from_json(json.loads(row["composition"])),
        client=Identity(row["client_pid"], row["client_created"]),
    )


def _replica(row: sqlite3.Row) -> ReplicaRow:
    fields = dict(row)
    process = _identity(fields.pop("pid"), fields.pop("created"))
    fields["ready"] = bool(fields["ready"])
    return ReplicaRow(**fields, process=process)
