"""The journal: what is written before it is done, by one run at a time."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.simulated import FakeClock, MemoryStore

from vllm_rollout.model.deployment import Build
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.rollout.journal import Event, Journal, JournalEntry, Phase, next_phase

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
ENTRY = JournalEntry(
    run_id="r1",
    model="m",
    source="staging",
    target="production",
    build=Build(values_digest="sha256:1"),
    before=1,
    phase=Phase.RAMP,
    note="",
    holder="here:1",
    started=NOW,
    updated=NOW,
)


def test_another_runs_entry_is_not_taken_for_ones_own() -> None:
    store = MemoryStore(FakeClock())
    mine, other = Journal(store, "m"), Journal(store, "m")
    mine.write(ENTRY)
    other.read()
    other.advance(ENTRY, Phase.ROLLBACK, "somebody else's", now=NOW)

    with pytest.raises(ConflictError):
        mine.advance(ENTRY, Phase.WATCH, "mine", now=NOW)

    found = other.read()
    assert found is not None
    assert found == replace(ENTRY, phase=Phase.ROLLBACK, note="somebody else's")


def test_an_unfinished_phase_can_be_resumed_and_a_closed_one_never() -> None:
    resumed = {phase: next_phase(phase, Event.RESUMED) for phase in Phase if phase != Phase.DONE}
    assert resumed == {
        Phase.RAMP: Phase.ROLLBACK,
        Phase.GATES: Phase.ROLLBACK,
        Phase.WATCH: Phase.WATCH,
        Phase.ROLLBACK: Phase.ROLLBACK,
    }
    assert {next_phase(phase, Event.ROLLBACK) for phase in resumed} == {Phase.ROLLBACK}
    for event in Event:
        with pytest.raises(KeyError):
            next_phase(Phase.DONE, event)
