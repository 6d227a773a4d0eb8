"""The lease: one rollout per model at a time, and each change asks for it itself."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.simulated import ALL_STABLE, FakeClock, MemoryStore
from support.world import MODEL, PRODUCTION, World

from vllm_rollout.model.deployment import Build, Target
from vllm_rollout.platform.base import ConflictError, Lease
from vllm_rollout.platform.local.database import Database
from vllm_rollout.platform.local.store import SqliteStore
from vllm_rollout.rollout.journal import Event, JournalEntry
from vllm_rollout.rollout.lease import TTL, HeldLease, LeaseLostError, hold
from vllm_rollout.rollout.leased_releases import LeasedReleases


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock)


def test_a_lease_is_given_back_even_when_the_work_fails(
    store: MemoryStore, clock: FakeClock
) -> None:
    with pytest.raises(ZeroDivisionError), hold(store, "m", clock=clock, on_wait=print):
        raise ZeroDivisionError
    assert store.leases == {}


def test_a_lease_is_not_renewed_while_the_work_stands_still(
    store: MemoryStore, clock: FakeClock
) -> None:
    alive, turns = threading.Event(), threading.Semaphore(0)

    def is_alive() -> bool:
        turns.release()
        return alive.is_set()

    ttl = timedelta(milliseconds=30)
    with hold(store, "m", clock=clock, on_wait=print, ttl=ttl, alive=is_alive):
        first = store.leases["m"].version
        for _ in range(3):
            turns.acquire()
        assert store.leases["m"].version == first
        alive.set()
        for _ in range(3):
            turns.acquire()
        assert store.leases["m"].version != first


def test_a_killed_runs_lease_is_taken_over_when_it_has_stood_still_for_its_time(
    store: MemoryStore, clock: FakeClock
) -> None:
    store.acquire("m", "killed:1", ttl=TTL)
    waited: list[str] = []

    with hold(store, "m", clock=clock, on_wait=waited.append) as held:
        held.ensure()
        assert held.whose == "; the lease was killed:1's, who let it run out"

    assert clock.seconds >= TTL.total_seconds()
    assert len(waited) == 1
    assert "m is being changed by killed:1" in waited[0]


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_living_runs_lease_is_respected_also_when_the_clock_is_stepped(
    store: MemoryStore, clock: FakeClock, step: timedelta
) -> None:
    store.acquire("m", "alive:1", ttl=TTL)
    clock.wall += step
    clock.meanwhile = lambda: store.renew("m", "alive:1", ttl=TTL)

    with (
        pytest.raises(ConflictError, match="alive:1"),
        hold(store, "m", clock=clock, on_wait=print),
    ):
        pytest.fail("two runs held one lease")
    assert clock.seconds < TTL.total_seconds()  # and it is said as soon as it is known


def test_a_frozen_process_whose_lease_nobody_took_goes_on(
    store: MemoryStore, clock: FakeClock
) -> None:
    with hold(store, "m", clock=clock, on_wait=print) as held:
        clock.seconds += TTL.total_seconds()
        assert held.seconds_left() == 0
        held.ensure()
        assert held.seconds_left() > 0


@pytest.mark.parametrize("gone_again", [False, True])
def test_a_lease_that_another_had_in_between_is_lost_for_good(
    store: MemoryStore, clock: FakeClock, gone_again: bool
) -> None:
    with hold(store, "m", clock=clock, on_wait=print) as held:
        with hold(store, "m", clock=clock, on_wait=print) as other:
            assert other.after == held.holder
            if not gone_again:
                with pytest.raises(LeaseLostError, match=other.holder):
                    held.ensure()
        for _ in range(2):
            with pytest.raises(LeaseLostError, match="nothing more is changed"):
                held.ensure()
        assert held.seconds_left() == 0


def test_a_store_that_answers_too_late_is_not_taken_at_its_word(
    store: MemoryStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    renew = store.renew

    def slow(name: str, holder: str, *, ttl: timedelta) -> Lease:
        clock.seconds += TTL.total_seconds()
        return renew(name, holder, ttl=ttl)

    with hold(store, "m", clock=clock, on_wait=print) as held:
        monkeypatch.setattr(store, "renew", slow)
        with pytest.raises(LeaseLostError, match="too late"):
            held.ensure()


def test_who_asks_in_a_transaction_and_who_renews_meanwhile_do_not_wait_for_each_other(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "state.db")
    store = SqliteStore(database)
    held = HeldLease(store, "m", clock=clock, ttl=TTL)
    held.take()
    renewing, in_transaction = threading.Event(), threading.Event()
    renew = store.renew

    def when_the_change_has_begun(name: str, holder: str, *, ttl: timedelta) -> Lease:
        if threading.current_thread() is keeper:
            renewing.set()
            in_transaction.wait(10)
        return renew(name, holder, ttl=ttl)

    def change() -> None:
        renewing.wait(10)
        with database.transaction():
            in_transaction.set()
            held.ensure()

    monkeypatch.setattr(store, "renew", when_the_change_has_begun)
    keeper = threading.Thread(target=held.renew, daemon=True)
    changer = threading.Thread(target=change, daemon=True)
    for thread in (keeper, changer):
        thread.start()
    for thread in (keeper, changer):
        thread.join(20)
        assert not thread.is_alive()
    held.ensure()


CHANGES: dict[str, Callable[[LeasedReleases, Build, JournalEntry], Any]] = {
    "begin": lambda releases, build, _: releases.begin(build, before=1, note=""),
    "take over": lambda releases, _, entry: releases.take_over(entry),
    "advance": lambda releases, _, entry: releases.advance(entry, Event.STEP, ""),
    "recover": lambda releases, *_: releases.recover(),
    "apply": lambda releases, build, _: releases.apply(
        PRODUCTION, Target(build=build, values={}, replicas=1, capacity=4), ""
    ),
    "roll back": lambda releases, *_: releases.rollback(1, ""),
    "uninstall": lambda releases, *_: releases.uninstall(PRODUCTION),
    "set weights": lambda releases, *_: releases.set_weights(ALL_STABLE, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_made_after_the_lease_was_lost(world: World, change: str) -> None:
    releases, store = world.tools().releases, world.platform.store
    build = world.platform.build(PRODUCTION, {"version": 2})
    with releases.leased():
        entry = releases.begin(build, before=1, note="about to begin")
        world.platform.guarded_by = None
        world.platform.calls.clear()
        assert releases.lease is not None
        store.release(MODEL, releases.lease.holder)
        store.acquire(MODEL, "another run", ttl=timedelta(seconds=30))

        with pytest.raises(LeaseLostError):
            CHANGES[change](releases, build, entry)

    assert world.platform.calls == []
    assert world.journal() == entry
