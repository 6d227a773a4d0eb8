"""TCP connections to a real API server that are cut: nothing is written twice, nothing is lost."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from cluster.cut import CutWire
from cluster.fixtures import Namespace

from vllm_rollout.model.deployment import Build
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.platform.kubernetes.api import connect
from vllm_rollout.platform.kubernetes.store import KubernetesStore
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.journal import Journal, JournalEntry, Phase

NOW = datetime(2026, 11, 18, 10, 0, tzinfo=UTC)
MODEL = "llama-2-7b"
ENTRY = JournalEntry(
    run_id="run-1",
    model=MODEL,
    source="staging",
    target="production",
    build=Build(values_digest="sha256:1"),
    before=1,
    phase=Phase.RAMP,
    note="about to begin",
    holder="us",
    started=NOW,
    updated=NOW,
)


@pytest.fixture
def store(wire: CutWire, namespace: Namespace) -> KubernetesStore:
    return KubernetesStore(connect(None), namespace.name)


def patiently(act: Callable[[], object]) -> None:
    """Do it until it is done, as a rollback does."""
    for _ in range(5):
        try:
            act()
        except UnreachableError:
            continue
        return
    raise AssertionError("unreachable five times")


def test_an_answer_to_a_journal_write_that_is_lost_is_found_by_the_second_attempt(
    wire: CutWire, store: KubernetesStore
) -> None:
    journal = Journal(store, MODEL)
    journal.write(ENTRY)
    for phase in (Phase.GATES, Phase.WATCH):
        wire.cut_at_the_next_answer()
        patiently(partial(journal.advance, ENTRY, phase, "goes on", now=NOW))
    journal.advance(ENTRY, Phase.DONE, "promoted", now=NOW)

    found = Journal(store, MODEL).read()
    assert found is not None
    assert found.phase is Phase.DONE


def test_a_decision_whose_answer_is_lost_leaves_the_chain_whole(
    wire: CutWire, store: KubernetesStore
) -> None:
    decisions = AuditLog(store)

    def decide(why: str) -> None:
        decisions.append(
            DecisionKind.PROMOTED,
            model=MODEL,
            environment="production",
            at=NOW,
            who="ada",
            why=why,
            run_id="run-1",
        )

    decide("first")
    wire.cut_at_the_next_answer()
    patiently(lambda: decide("second"))
    decide("third")

    assert decisions.verify(MODEL) == []
    reasons = [each.why for each in decisions.of(MODEL)]
    assert list(dict.fromkeys(reasons)) == ["first", "second", "third"]


def test_a_cut_wire_is_unreachable_and_a_repaired_one_goes_on(
    wire: CutWire, store: KubernetesStore
) -> None:
    version = store.write("evidence/a", {"n": 1}, expect=None)
    store.acquire(MODEL, "us", ttl=timedelta(seconds=30))
    wire.cut()
    for act in (
        lambda: store.read("evidence/a"),
        lambda: store.write("evidence/a", {"n": 2}, expect=version),
        lambda: store.renew(MODEL, "us", ttl=timedelta(seconds=30)),
    ):
        with pytest.raises(UnreachableError) as raised:
            act()
        assert raised.value.exit_code is ExitCode.UNREACHABLE
        assert wire.url.removeprefix("https://") in raised.value.address
    wire.repair()

    entry = store.read("evidence/a")
    assert entry is not None
    assert entry.value == {"n": 1}
    assert store.renew(MODEL, "us", ttl=timedelta(seconds=30)).holder == "us"
