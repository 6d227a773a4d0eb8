"""The one SQLite file of a state directory: its schema, its connection, its transactions."""

import fcntl
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vllm_rollout.model.errors import UnreachableError, UsageError

SCHEMA_VERSION = 5
_BUSY_SECONDS = 10.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux gives each boot another id; elsewhere there is no such file."""

# A release cannot be deleted while a replica row names it: the row is all that is known of a
# process that may still run.
_SCHEMA = """
CREATE TABLE releases (
    name TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    port INTEGER NOT NULL UNIQUE,
    desired INTEGER,
    settled INTEGER,
    startup_timeout_seconds REAL NOT NULL,
    max_restarts INTEGER NOT NULL,
    router_pid INTEGER,
    router_created REAL
);
CREATE TABLE revisions (
    release TEXT NOT NULL REFERENCES releases ON DELETE CASCADE,
    number INTEGER NOT NULL,
    status TEXT NOT NULL,
    created TEXT NOT NULL,
    description TEXT NOT NULL,
    build TEXT NOT NULL,
    made_of TEXT NOT NULL,
    composition TEXT NOT NULL,
    client_pid INTEGER NOT NULL,
    client_created REAL NOT NULL,
    PRIMARY KEY (release, number)
);
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    release TEXT NOT NULL REFERENCES releases,
    name TEXT NOT NULL,
    build TEXT NOT NULL,
    revision INTEGER NOT NULL,
    phase TEXT NOT NULL,
    ready INTEGER NOT NULL,
    restarts INTEGER NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    port INTEGER,
    pid INTEGER,
    created REAL
);
CREATE TABLE documents (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    version INTEGER NOT NULL
);
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires TEXT NOT NULL
);
"""
_SINCE = {
    2: """
CREATE TABLE traffic (
    release TEXT PRIMARY KEY REFERENCES releases ON DELETE CASCADE,
    stable INTEGER NOT NULL,
    canary INTEGER,
    in_force INTEGER NOT NULL
);
""",
    4: """
CREATE TABLE gpus (
    device TEXT PRIMARY KEY,
    position INTEGER,
    replica TEXT REFERENCES replicas ON DELETE SET NULL
);
CREATE TABLE slots (
    replica TEXT PRIMARY KEY REFERENCES replicas ON DELETE CASCADE,
    slot INTEGER NOT NULL UNIQUE
);
CREATE TABLE boot (id TEXT NOT NULL);
""",
    # Not a column of `releases`: a router of version 2 ends at one that it does not know.
    5: """
CREATE TABLE drains (
    release TEXT PRIMARY KEY REFERENCES releases ON DELETE CASCADE,
    seconds REAL NOT NULL
);
""",
}
"""What each later version of the schema adds."""
_DRAINS_OF_A_COLUMN = "INSERT INTO drains SELECT name, drain_seconds FROM releases;"
"""Versions 3 and 4 have had the drain in a column of `releases`."""
_REMEDIES = {
    "is locked": "Another program has locked it: let that end, and run this again.",
    "disk is full": "Make room on its disk, and run this again.",
}
"""By words of SQLite's messages."""
_REBOOTED = (
    "UPDATE releases SET router_pid = NULL, router_created = NULL, settled = NULL",
    "UPDATE replicas SET pid = NULL, created = NULL, ready = 0",
    "UPDATE revisions SET client_pid = 0 WHERE status = 'pending'",
    "DELETE FROM boot",
)
"""No process of an earlier boot runs; another may have its id, and even the time it started at."""


class Database:
    """One connection to the file, shared by the threads of this process.

    With `durable` every commit reaches the disk before it returns; without, a commit survives the
    death of any process but the last ones may be lost when the machine loses power (the router
    writes only what it would find out again).

    Raises:
        UnreachableError: the file cannot be opened, is no database, or stays locked.
        UsageError: a newer version of this program wrote it.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            weakref.finalize(self, self._connection.close)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._create()

    def _create(self) -> None:
        # Two processes that switch a new file to WAL at once get "locked" without any wait.
        with self.path.with_suffix(".create").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise UsageError(
                    f"{self.path} has schema {version}; this version knows {SCHEMA_VERSION}",
                    remedy="Use the newer vllm-rollout that wrote it, or another state directory.",
                )
            # A restored copy is not in that mode either.
            self._connection.execute("PRAGMA journal_mode = WAL")
            missing = [sql for number, sql in _SINCE.items() if number > version]
            if version in (3, 4):
                missing.append(_DRAINS_OF_A_COLUMN)
            script = "".join([_SCHEMA] * (version == 0) + missing)
            if script:
                self._connection.executescript(
                    f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
                )
            self._forget_the_dead()

    def _forget_the_dead(self) -> None:
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        known = [row["id"] for row in self.rows("SELECT id FROM boot")]
        if known != [boot]:
            with self.transaction():
                for sql in _REBOOTED if known else ():
                    self.execute(sql)
                self.execute("INSERT INTO boot VALUES (?)", (boot,))

    def copy_to(self, file: Path) -> None:
        """Copy all of it, as it is at one moment, to `file`, in whose place it comes at once.

        Raises:
            UnreachableError: it cannot be read, or the copy not be written or read again.
        """
        new = file.with_name(f"{file.name}.new")
        try:
            new.unlink(missing_ok=True)
            new.touch(mode=0o600)
            with closing(sqlite3.connect(new)) as copy:
                with self._lock:
                    self._connection.backup(copy)
                # Of one file: a copy of it alone is whole.
                copy.execute("PRAGMA journal_mode = DELETE")
                found = copy.execute("PRAGMA integrity_check").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"the copy is damaged: {found}")
            new.replace(file)
        except (sqlite3.Error, OSError) as error:
            new.unlink(missing_ok=True)
            raise UnreachableError(
                f"{self.path} cannot be copied to {file}: {error}",
                address=str(file),
                remedy="Name a file in a folder that is there, writable and has room.",
            ) from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise UnreachableError(
                f"the state file {self.path} cannot be used: {error}",
                address=str(self.path),
                remedy=next(
                    (remedy for words, remedy in _REMEDIES.items() if words in str(error)),
                    "Check that the directory is writable and on a local disk.",
                ),
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, alone among writers; one begun inside another joins it."""
        with self._lock, self._errors():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # Nothing where a full disk has ended it; a commit that fails has not ended it.
                self._connection.rollback()
                raise

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows a query finds."""
        with self._lock, self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row a query finds, or None."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement in a transaction; return how many rows it changed."""
        with self.transaction():
            return self._connection.execute(sql, parameters).rowcount
