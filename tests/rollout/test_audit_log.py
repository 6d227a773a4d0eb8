"""The chain of decisions: whole whoever is killed, and what is done to it is named."""

from collections.abc import Callable
from typing import Any

import pytest
from support.simulated import WEDNESDAY, FakeClock, MemoryStore
from support.world import MODEL

from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.platform.base import ConflictError, Entry
from vllm_rollout.rollout.audit_log import AuditLog, Decision, DecisionKind


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(FakeClock())


def add(store: MemoryStore, why: str = "it passed", evidence: str = "") -> Decision:
    return AuditLog(store).append(
        DecisionKind.PROMOTION,
        model=MODEL,
        environment="production",
        at=WEDNESDAY,
        who="ada",
        why=why,
        evidence=evidence,
    )


def test_entries_follow_one_another(store: MemoryStore) -> None:
    added = [add(store, why) for why in "abc"]
    decisions = AuditLog(store)

    assert decisions.of(MODEL) == added
    assert [d.number for d in added] == [1, 2, 3]
    assert [d.previous for d in added] == ["", added[0].digest, added[1].digest]
    assert decisions.verify(MODEL) == []
    assert decisions.of("other") == []
    assert decisions.verify("other") == []


def test_a_writer_that_is_killed_between_its_writes_breaks_nothing(store: MemoryStore) -> None:
    add(store, "a")
    write = store.write

    def killed(key: str, value: Any, *, expect: str | None) -> str:
        if key.startswith("decided/"):
            raise SystemExit
        return write(key, value, expect=expect)

    store.write = killed  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        add(store, "b")
    store.write = write  # type: ignore[method-assign]
    assert [d.why for d in AuditLog(store).of(MODEL)] == ["a", "b"]
    assert AuditLog(store).verify(MODEL) == []

    add(store, "c")
    assert [d.why for d in AuditLog(store).of(MODEL)] == ["a", "b", "c"]
    assert AuditLog(store).verify(MODEL) == []


def test_of_two_writers_at_once_both_are_in_the_chain(store: MemoryStore) -> None:
    write = store.write
    other: list[Decision] = []

    def late(key: str, value: Any, *, expect: str | None) -> str:
        if not other:
            store.write = write  # type: ignore[method-assign]
            other.append(add(store, "the other"))
        return write(key, value, expect=expect)

    store.write = late  # type: ignore[method-assign]
    add(store, "this one")
    assert [d.why for d in AuditLog(store).of(MODEL)] == ["the other", "this one"]
    assert AuditLog(store).verify(MODEL) == []


def forge(store: MemoryStore, number: int, **changes: str) -> None:
    """Change an entry as one would who knows how its own digest is made."""
    key = f"decisions/{MODEL}/{number:08d}"
    entry = store.entries[key]
    content = {**entry.value["decision"], **changes}
    value = {"decision": content, "digest": canonical_digest(content)}
    store.entries[key] = Entry(key, value, entry.version)


def edit(store: MemoryStore) -> None:
    store.entries[f"decisions/{MODEL}/00000002"].value["decision"]["who"] = "eve"


def swap(store: MemoryStore) -> None:
    two, three = (f"decisions/{MODEL}/{n:08d}" for n in (2, 3))
    store.entries[two], store.entries[three] = store.entries[three], store.entries[two]


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (edit, "entry 2 (promotion by eve, 2026-11-18 10:00:00 UTC) was changed after"),
        (lambda s: forge(s, 2, who="eve"), "entry 2 (promotion by eve"),
        (lambda s: forge(s, 2, kind="acquittal"), "a kind that this version does not know: update"),
        (lambda s: forge(s, 4, who="eve"), "00 UTC) is not the one that was written last"),
        (lambda s: s.entries.pop(f"decisions/{MODEL}/00000001"), "entry 1 is gone"),
        (lambda s: s.entries.pop(f"decisions/{MODEL}/00000003"), "entry 3 is gone"),
        (lambda s: s.entries.pop(f"decisions/{MODEL}/00000004"), "entry 4 is gone"),
        (swap, "entry 2 is gone: in its place is what was written as entry 3"),
        (lambda s: s.entries.pop(f"evidence/{MODEL}/1"), "the evidence sha256:1 of entry 4"),
    ],
)
def test_what_was_done_to_the_chain_is_named(
    store: MemoryStore, tamper: Callable[[MemoryStore], object], said: str
) -> None:
    store.write(f"evidence/{MODEL}/1", {}, expect=None)
    for why in "abc":
        add(store, why)
    add(store, "d", evidence="sha256:1")
    tamper(store)

    assert any(said in line for line in AuditLog(store).verify(MODEL))


def test_nothing_is_added_behind_what_does_not_follow(store: MemoryStore) -> None:
    add(store)
    store.write(f"decisions/{MODEL}/00000002", {"decision": {}, "digest": ""}, expect=None)
    with pytest.raises(ConflictError, match="entry 2 does not follow entry 1"):
        add(store)
