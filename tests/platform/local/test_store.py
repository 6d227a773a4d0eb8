"""Compare-and-set and leases hold between processes, and time is the store's clock."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vllm_rollout.model.deployment import Build, RevisionStatus
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.platform.base import ConflictError, LeaseHeldError
from vllm_rollout.platform.local import database
from vllm_rollout.platform.local.composition import Composition, Part
from vllm_rollout.platform.local.database import SCHEMA_VERSION, Database
from vllm_rollout.platform.local.processes import Identity
from vllm_rollout.platform.local.state import ReplicaRow, RevisionRow, open_state
from vllm_rollout.platform.local.store import SqliteStore

MINUTE = timedelta(minutes=1)
DRAIN_COLUMN = "ALTER TABLE releases ADD COLUMN drain_seconds REAL NOT NULL DEFAULT 60;"


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> SqliteStore:
    return SqliteStore(Database(tmp_path / "state.db"), now=clock)


def test_a_write_against_another_version_is_refused_and_changes_nothing(store: SqliteStore) -> None:
    first = store.write("journal/a", {"step": 1}, expect=None)
    with pytest.raises(ConflictError, match="journal/a"):
        store.write("journal/a", {"step": 2}, expect=None)
    with pytest.raises(ConflictError):
        store.write("journal/new", {}, expect=first)

    second = store.write("journal/a", {"step": 2}, expect=first)
    with pytest.raises(ConflictError):
        store.write("journal/a", {"step": 3}, expect=first)

    entry = store.read("journal/a")
    assert entry is not None
    assert (entry.value, entry.version) == ({"step": 2}, second)
    assert store.read("journal/new") is None


def test_one_of_many_writers_wins_each_version(tmp_path: Path, store: SqliteStore) -> None:
    script = """
import sys
from pathlib import Path
from vllm_rollout.platform.base import ConflictError, LeaseHeldError
from vllm_rollout.platform.local.database import Database
from vllm_rollout.platform.local.store import SqliteStore
store = SqliteStore(Database(Path(sys.argv[1])))
added = 0
while added < 25:
    entry = store.read("count")
    try:
        store.write("count", entry.value + 1, expect=entry.version)
        added += 1
    except ConflictError:
        pass
"""
    store.write("count", 0, expect=None)
    command = [sys.executable, "-c", script, str(tmp_path / "state.db")]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    entry = store.read("count")
    assert entry is not None
    assert entry.value == 75


def test_keys_take_a_prefix_literally(store: SqliteStore) -> None:
    for key in ("run/b", "run/a", "run%", "other"):
        store.write(key, None, expect=None)
    assert store.keys("run/") == ["run/a", "run/b"]
    assert store.keys("run%") == ["run%"]
    assert store.keys("r_n") == []


def test_what_is_not_json_is_not_stored(store: SqliteStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write("a", {"p95": float("nan")}, expect=None)
    assert store.read("a") is None


def test_a_lease_is_one_holders_until_another_saw_it_stand_still(
    store: SqliteStore, clock: Clock
) -> None:
    first = store.acquire("llama", "ci-1", ttl=MINUTE)
    with pytest.raises(LeaseHeldError, match="ci-1 until 2026-01-01 00:01:00 UTC") as held:
        store.acquire("llama", "ci-2", ttl=MINUTE)
    assert held.value.lease.version == first.version

    clock.time += timedelta(seconds=50)
    assert store.renew("llama", "ci-1", ttl=MINUTE).expires == clock.time + MINUTE
    with pytest.raises(LeaseHeldError) as held:  # it was renewed: ci-1 lives
        store.acquire("llama", "ci-2", ttl=MINUTE, over=first)

    assert store.acquire("llama", "ci-2", ttl=MINUTE, over=held.value.lease).after == "ci-1"
    with pytest.raises(ConflictError, match="is ci-2's by now"):
        store.renew("llama", "ci-1", ttl=MINUTE)
    store.release("llama", "ci-2")
    with pytest.raises(ConflictError, match="is nobody's by now"):
        store.renew("llama", "ci-1", ttl=MINUTE)


def test_only_the_holder_can_give_a_lease_up(store: SqliteStore) -> None:
    store.acquire("llama", "ci-1", ttl=MINUTE)
    store.release("llama", "ci-2")
    with pytest.raises(ConflictError):
        store.acquire("llama", "ci-2", ttl=MINUTE)
    store.release("llama", "ci-1")
    store.acquire("llama", "ci-2", ttl=MINUTE)


def test_a_file_that_is_no_state_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    broken = tmp_path / "state.db"
    broken.write_bytes(b"not a database, and long enough to be looked at" * 40)
    with pytest.raises(UnreachableError, match=str(broken)):
        Database(broken)

    newer = Database(tmp_path / "newer.db")
    newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(UsageError, match="schema"):
        Database(tmp_path / "newer.db")


def test_a_locked_state_file_says_what_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.0)
    ours = Database(tmp_path / "state.db")
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnreachableError, match="is locked") as caught:
            ours.execute("DELETE FROM boot")
    assert "Another program has locked it" in caught.value.remedy


@pytest.mark.parametrize(("version", "column", "drain"), [(2, "", 60), (4, DRAIN_COLUMN, 7)])
def test_an_older_state_file_is_opened_and_its_routers_go_on(
    tmp_path: Path, version: int, column: str, drain: int
) -> None:
    later = "".join(sql for number, sql in database._SINCE.items() if number in (2, version))
    release = "INSERT INTO releases VALUES ('a', 'a', 9, 1, 1, 5, 6, 77, 1.5, 7)"
    with closing(sqlite3.connect(tmp_path / "state.db")) as old:
        old.executescript(f"{database._SCHEMA}{later}{column}")
        # A router reads all columns, and ends where there is one that it does not know.
        columns = [row[1] for row in old.execute("PRAGMA table_info(releases)")]
        old.execute(release if column else release.replace(", 7)", ")"))
        old.execute(f"PRAGMA user_version = {version}")
        old.commit()

        state = open_state(tmp_path)

        assert [row[1] for row in old.execute("PRAGMA table_info(releases)")] == columns
    found = state.release("a")
    assert found is not None
    assert (found.router, found.drain_seconds) == (Identity(77, 1.5), drain)
    state.put_release("a", "a", startup_timeout_seconds=1, max_restarts=1, drain_seconds=8)
    assert open_state(tmp_path).release("a") == replace(
        found, startup_timeout_seconds=1, max_restarts=1, drain_seconds=8
    )


def test_old_revisions_go_but_those_whose_values_are_in_use(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    state.put_release("a", "a", startup_timeout_seconds=1, max_restarts=1, drain_seconds=1)
    for number in range(1, 11):
        values_of = {8: 2, 9: 3}.get(number, number)
        part = Part(build="b", revision=values_of, replicas=1, weight=1)
        row = RevisionRow(
            number=number,
            status=RevisionStatus.DEPLOYED if number == 5 else RevisionStatus.SUPERSEDED,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            description="",
            build=Build(values_digest="b"),
            values={},
            composition=Composition(head=part, capacity=1),
            client=Identity(1, 1.0),
        )
        state.add_revision("a", row)
    state.put_replica(ReplicaRow(id="r", release="a", name="r", build="b", revision=4))

    state.forget_revisions("a", before=9)

    assert [row.number for row in state.revisions("a")] == [3, 4, 5, 9, 10]
