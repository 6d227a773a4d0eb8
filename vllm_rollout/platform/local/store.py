"""Documents and leases in the state file."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.base import ConflictError, Entry, Lease, LeaseHeldError
from vllm_rollout.platform.local.database import Database


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


class SqliteStore:
    """The `Store` of the local platform. `now` is the clock by which leases expire."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    def read(self, key: str) -> Entry | None:
        """The entry, or None.

        Raises:
            DeployError: the row was edited manually and cannot be read.
        """
        row = self._database.row("SELECT value, version FROM documents WHERE key = ?", (key,))
        if row is None:
            return None
        try:
            return Entry(key, json.loads(row["value"]), str(row["version"]))
        except (ValueError, RecursionError) as error:
            raise DeployError(
                f"{key} in {self._database.path} was changed and cannot be read: {error}",
                remedy="Restore it from a backup.",
            ) from error

    def write(self, key: str, value: Any, *, expect: str | None) -> str:
        """Write `value` if the key is still at version `expect` (None: new); return its version.

        Raises:
            ConflictError: the key is at another version.
            ValueError, TypeError: `value` is not JSON.
        """
        text = json.dumps(value, allow_nan=False)
        with self._database.transaction():
            row = self._database.row("SELECT version FROM documents WHERE key = ?", (key,))
            current = None if row is None else str(row["version"])
            if current != expect:
                raise ConflictError(
                    f"{key} is {_at(current)}, not {_at(expect)}: someone else wrote it",
                    remedy="Read it again and decide again.",
                )
            version = 1 if row is None else int(row["version"]) + 1
            self._database.execute(
                "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET value = excluded.value, version = excluded.version",
                (key, text, version),
            )
        return str(version)

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`, sorted."""
        rows = self._database.rows(
            "SELECT key FROM documents WHERE substr(key, 1, ?) = ? ORDER BY key",
            (len(prefix), prefix),
        )
        return [row["key"] for row in rows]

    def acquire(
        self, name: str, holder: str, *, ttl: timedelta, over: Lease | None = None
    ) -> Lease:
        """Take the lease where it is free, or take it over where it still is exactly `over`.

        Raises:
            LeaseHeldError: another holds it, or renewed it meanwhile.
            ValueError: `ttl` is not positive.
        """
        with self._database.transaction():
            held = self._lease(name)
            if held is not None and held.holder != holder:
                if over is None or over.version != held.version:
                    raise LeaseHeldError(held)
                return self._put(name, holder, ttl, after=held.holder)
            return self._put(name, holder, ttl)

    def renew(self, name: str, holder: str, *, ttl: timedelta) -> Lease:
        """Renew the lease that `holder` has. In a transaction it stands until that ends.

        Raises:
            ConflictError: it is another's by now, or nobody's.
        """
        with self._database.transaction():
            held = self._lease(name)
            if held is None or held.holder != holder:
                whose = held.holder if held else "nobody"
                raise ConflictError(f"the lease of {name} is {whose}'s by now, not {holder}'s")
            return self._put(name, holder, ttl)

    def _lease(self, name: str) -> Lease | None:
        row = self._database.row("SELECT holder, expires FROM leases WHERE name = ?", (name,))
        if row is None:
            return None
        expires = datetime.fromisoformat(row["expires"])
        return Lease(name, row["holder"], expires, f"{row['holder']} {row['expires']}")

    def _put(self, name: str, holder: str, ttl: timedelta, *, after: str = "") -> Lease:
        if ttl <= timedelta(0):
            raise ValueError(f"a lease of {ttl} is none")
        expires = self._now() + ttl
        self._database.execute(
            "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
            " SET holder = excluded.holder, expires = excluded.expires",
            (name, holder, expires.isoformat()),
        )
        return Lease(name, holder, expires, f"{holder} {expires.isoformat()}", after)

    def release(self, name: str, holder: str) -> None:
        """Give the lease up if `holder` has it; otherwise do nothing."""
        self._database.execute("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))


def _at(version: str | None) -> str:
    return "absent" if version is None else f"at version {version}"
