"""The lease: one rollout per model at a time."""

import pytest
from support.world import FakeClock, MemoryStore

from vllm_rollout.platform.base import ConflictError
from vllm_rollout.release.lock import TTL, LeaseLostError, hold


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


def test_a_killed_runs_lease_is_waited_for_until_it_expires(
    store: MemoryStore, clock: FakeClock
) -> None:
    store.acquire("m", "killed:1", ttl=TTL)
    waited: list[str] = []

    with hold(store, "m", clock=clock, on_wait=waited.append) as held:
        held.ensure()

    assert len(waited) == 1
    assert "killed:1 holds m" in waited[0]


def test_a_living_runs_lease_is_respected(store: MemoryStore, clock: FakeClock) -> None:
    store.acquire("m", "alive:1", ttl=TTL)
    clock.meanwhile = lambda: store.acquire("m", "alive:1", ttl=TTL)

    with (
        pytest.raises(ConflictError, match="alive:1"),
        hold(store, "m", clock=clock, on_wait=print),
    ):
        pytest.fail("two runs held one lease")


def test_a_frozen_process_finds_its_lease_lost(store: MemoryStore, clock: FakeClock) -> None:
    with hold(store, "m", clock=clock, on_wait=print) as held:
        clock.seconds += TTL.total_seconds()
        with pytest.raises(LeaseLostError):
            held.ensure()
