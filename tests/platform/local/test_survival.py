"""Killed at any point, the state is whole, every process is found, and nothing is left behind."""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from support.local_release import LocalRelease, tiny, until

from vllm_rollout.platform.base import ConflictError
from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.replica import ReplicaKeeper, Surroundings
from vllm_rollout.platform.local.router_control import RouterLock
from vllm_rollout.platform.local.router_state import RouterState
from vllm_rollout.platform.local.state import ReplicaRow, open_state
from vllm_rollout.platform.local.values import LocalValues

MINUTE = timedelta(minutes=1)
CLIENT = """
import json, sys
from datetime import timedelta
from pathlib import Path
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.platform.local import LocalPlatform
platform = LocalPlatform(Path(sys.argv[1]), startup_timeout=timedelta(seconds=30), max_restarts=1)
deployment = Deployment("llama-2-7b", "staging")
values = json.loads(sys.argv[2])
target = Target(build=platform.build(deployment, values), values=values, replicas=1, capacity=2)
platform.apply(deployment, target, description="killed", timeout=timedelta(seconds=60))
"""


@contextmanager
def client(state_dir: Path, values: dict[str, object]) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that applies `values`, killed (SIGKILL) at the end of the block."""
    command = [sys.executable, "-c", CLIENT, str(state_dir), json.dumps(values)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def kill(identity: processes.Identity | None) -> None:
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    until(lambda: not processes.is_running(identity))


def answering(release: LocalRelease) -> set[int]:
    """The processes that answer four requests; nobody where the router does not."""
    with suppress(httpx.TransportError):
        answers = [httpx.post(f"{release.url}/v1/completions", json={}) for _ in range(4)]
        return {answer.json()["pid"] for answer in answers if answer.is_success}
    return set()


def pending(release: LocalRelease) -> bool:
    return "pending" in release.statuses


def spawned(release: LocalRelease) -> bool:
    return pending(release) and any(
        row.process is not None and row.revision == 2 for row in release.rows
    )


@pytest.mark.parametrize("moment", [pending, spawned])
def test_a_client_killed_in_a_change_is_undone_by_recover(
    release: LocalRelease, tmp_path: Path, moment: Callable[[LocalRelease], bool]
) -> None:
    release.apply(tiny("a"), 2, 2)
    with client(tmp_path / "state", tiny("b", "--never-ready")) as other:
        until(lambda: moment(release))
        with pytest.raises(ConflictError, match=f"process {other.pid}"):
            release.platform.recover(release.deployment, timeout=MINUTE)
    with pytest.raises(ConflictError, match="revision 2 is still pending"):
        release.apply(tiny("c"), 2, 2)

    found = release.platform.recover(release.deployment, timeout=MINUTE)

    assert "revision 2 was pending" in found
    assert str(other.pid) in found
    assert found.endswith("revision 1 serves")
    assert release.statuses == ["deployed", "failed"]
    assert release.served(4) == {"a": 4}
    until(lambda: len(release.carried()) == 2)
    assert release.platform.recover(release.deployment, timeout=MINUTE) == ""
    assert release.apply(tiny("c"), 2, 2).number == 3


@pytest.mark.parametrize("with_router", [True, False])
def test_a_client_killed_in_a_first_install_leaves_nothing_running(
    release: LocalRelease, tmp_path: Path, with_router: bool
) -> None:
    with client(tmp_path / "state", tiny("a", "--never-ready")):
        until(lambda: len(release.carried()) == 1)
    router, ids = release.router, [row.id for row in release.rows]
    if not with_router:
        kill(router)

    assert "revision 1 was pending" in release.platform.recover(release.deployment, timeout=MINUTE)

    until(lambda: not processes.is_running(router) and not release.rows)
    assert [processes.carrying(each) for each in ids] == [[]]
    assert release.apply(tiny("b")).number == 2


def test_replicas_outlive_a_killed_router_and_are_adopted_by_the_next(
    release: LocalRelease,
) -> None:
    release.apply(tiny("a", "--fork"), 3, 3)
    before, url, ids = release.pids(), release.url, [row.id for row in release.rows]
    kill(release.router)
    assert {each.reason for each in release.platform.replicas(release.deployment)} == {"RouterGone"}
    assert not any(each.ready for each in release.platform.replicas(release.deployment))
    # One replica dies with nobody there to see; of another the process was never written down.
    died, unknown, _ = release.rows
    kill(died.process)
    release.platform._state.database.execute(
        "UPDATE replicas SET pid = NULL, created = NULL WHERE id = ?", (unknown.id,)
    )

    found = release.platform.recover(release.deployment, timeout=MINUTE)

    assert found == "the router was not running: started again; revision 1 serves"
    assert release.url == url
    assert release.served(6) == {"a": 6}
    assert len(release.pids() & before) == 1
    assert [row.restarts for row in release.rows] == [1, 0, 0]
    # A server and its child each, and no stray of the two that were started anew.
    until(lambda: [len(processes.carrying(each)) for each in ids] == [2, 2, 2])


def test_uninstall_after_a_killed_router_ends_its_replicas(release: LocalRelease) -> None:
    release.apply(tiny("a", "--fork"), 2, 2)
    ids = [row.id for row in release.rows]
    kill(release.router)
    release.platform.uninstall(release.deployment, timeout=timedelta(seconds=5))
    assert [processes.carrying(each) for each in ids] == [[], []]
    assert release.statuses == []


def test_a_release_has_one_router_at_most_which_is_started_again(
    release: LocalRelease, tmp_path: Path
) -> None:
    release.apply(tiny("a"))
    lock = RouterLock(tmp_path / "state", release.key)
    assert not lock.take(within_seconds=0)
    lock.release()

    router, pids = release.router, release.pids()
    assert router is not None
    (serving,) = psutil.Process(router.pid).children()
    serving.kill()
    until(lambda: psutil.Process(router.pid).children() not in ([], [serving]))
    until(lambda: release.router == router and answering(release) == pids)

    assert release.pids() == pids

    # While it is started again, the state file names none, and it is stopped all the same.
    release.platform._state.set_router(release.key, None)
    release.platform.uninstall(release.deployment, timeout=timedelta(seconds=5))
    assert not processes.is_running(router)


def test_a_locked_state_file_delays_no_request_and_gives_no_replica_up(
    release: LocalRelease, tmp_path: Path
) -> None:
    release.apply(tiny("a"), 2, 2)
    before, died = release.pids(), release.rows[0].process
    with closing(sqlite3.connect(tmp_path / "state" / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        kill(died)
        until(lambda: len(answering(release) - before) == 1)
        replicas = release.platform.replicas(release.deployment)
        assert [(each.ready, each.reason) for each in replicas] == [
            (False, "ProcessGone"),
            (True, ""),
        ]
    until(lambda: [(row.ready, row.restarts) for row in release.rows] == [(True, 1), (True, 0)])


def test_a_replica_that_dies_on_a_full_disk_is_started_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, errors = tmp_path / "room", [RuntimeError("of this keeper alone")]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9 if room.exists() else 0)
    )
    state = open_state(tmp_path)
    state.put_release("a", "a", startup_timeout_seconds=30, max_restarts=0, drain_seconds=1)
    release = state.release("a")
    assert release is not None
    serve = f"test -e {room} && exec sleep 60; exit 1"

    async def live() -> tuple[str, str]:
        async def healthy(_: str) -> bool:
            if room.exists() and errors:
                raise errors.pop()
            return room.exists()

        around = Surroundings(
            release=release,
            state=RouterState(state, "a"),
            logs=tmp_path,
            environment=os.environ,
            healthy=healthy,
        )
        row = ReplicaRow(id=str(uuid.uuid4()), release="a", name="a-1", build="b", revision=1)
        values = LocalValues(command=["sh", "-c", serve])
        keeper = ReplicaKeeper(row, values, around, changed=lambda: None)
        life = asyncio.create_task(keeper.run())
        while keeper.row.restarts < 2:
            await asyncio.sleep(0.02)
        seen = keeper.row.reason, keeper.row.message
        room.touch()
        while not keeper.ready:
            await asyncio.sleep(0.02)
        keeper.leave()
        await life
        return seen

    seen = asyncio.run(live())

    why = f"exited with code 1; the disk of {tmp_path} is full; started again within 1 s"
    assert seen == ("DiskFull", why)
    assert errors == []


def test_a_process_is_not_taken_for_another_with_its_id() -> None:
    me = processes.current()
    assert processes.is_running(me)
    earlier = processes.Identity(me.pid, me.created - 60)
    assert not processes.is_running(earlier)
    processes.end_process(earlier, grace_seconds=0)
