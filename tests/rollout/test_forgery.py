"""Attacks by somebody who may write to the store and is not QA: nothing is promoted by them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.simulated import MemoryStore
from support.world import MODEL, RAMP, SIGN_OFF, STAGING, World, decide

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.evidence import Evidence, documents, read_evidence, write_evidence
from vllm_rollout.platform.base import Entry
from vllm_rollout.platform.local.database import Database
from vllm_rollout.platform.local.store import SqliteStore
from vllm_rollout.rollout.audit_log import AuditLog, AuditLogReader, DecisionKind
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import grown_from, stored_evidence
from vllm_rollout.rollout.sign_offs import sign_off_of


def put(store: MemoryStore, key: str, value: Any) -> None:
    """Write as somebody does who asks for no version."""
    store.entries[key] = Entry(key, value, "1")


def by_hand(world: World, pending: Evidence) -> None:
    """A sign-off and a passed revision written into lists, and nothing into the chain."""
    revision = world.platform.history(STAGING)[-1]
    word = {
        "evidence": pending.digest, "approved": True, "by": "Grace of QA", "user": "grace",
        "at": str(world.clock.now()), "note": "", "environment": "staging",
        "revision": revision.number, "build": revision.build.digest,
    }  # fmt: skip
    put(world.platform.store, f"sign-offs/{MODEL}", [word])
    passed = {"build": revision.build.digest, "evidence": pending.digest}
    put(world.platform.store, f"passed/{STAGING.release}/{revision.number:08d}", passed)


def as_another_build(world: World, pending: Evidence) -> None:
    """QA signs honestly; then what is under the digest is made that of a build that fails."""
    decide(world, pending)
    world.platform.deploy(STAGING, {"version": 9})
    world.pass_development(world.platform.history(STAGING)[-1].build)
    world.gates.outcomes["staging"] = Outcome.FAIL
    revision = world.platform.history(STAGING)[-1]
    store = world.platform.store
    document, runs = documents(pending)
    ((digest, run),) = runs.items()
    run |= {"revision": revision.number, "build": revision.build.parts()}
    put(store, f"gate-runs/{MODEL}/{digest[7:]}", run)
    other = canonical_digest(run)
    put(store, f"gate-runs/{MODEL}/{other[7:]}", run)
    put(store, f"evidence/{MODEL}/{pending.digest[7:]}", document | {"gate_runs": [other]})
    signed = store.entries[f"decisions/{MODEL}/00000002"].value["decision"]
    assert signed["kind"] == "sign-off"
    signed["build"] = revision.build.digest


def under_an_invented_digest(world: World, pending: Evidence) -> None:
    """Evidence, a passed revision and a well-formed decision about a build that was not gated."""
    world.gates.outcomes["staging"] = Outcome.FAIL
    store, digest = world.platform.store, "sha256:" + "5" * 64
    document, _ = documents(pending)
    put(store, f"evidence/{MODEL}/{digest[7:]}", document)
    revision = world.platform.history(STAGING)[-1]
    AuditLog(store).append(
        DecisionKind.SIGN_OFF, model=MODEL, environment="staging", at=world.clock.now(),
        who="Grace of QA (as grace)", why="", build=revision.build.digest, evidence=digest,
    )  # fmt: skip


def without_the_rejection(world: World, pending: Evidence) -> None:
    """The note of which decision was the last is put back to before the rejection."""
    store = world.platform.store
    before = store.entries[f"decided/{MODEL}"]
    decide(world, pending)
    decide(world, pending, approved=False)
    store.entries[f"decided/{MODEL}"] = before


def without_the_last_note(world: World, pending: Evidence) -> None:
    """The same, with no note left of which decision was the last."""
    without_the_rejection(world, pending)
    del world.platform.store.entries[f"decided/{MODEL}"]


def as_if_it_had_passed(world: World, _pending: Evidence) -> None:
    """A build that development has never gated is noted as one that passed there."""
    build = world.platform.deploy(STAGING, {"version": 9})
    value = {"build": build.digest, "evidence": "sha256:" + "5" * 64}
    put(world.platform.store, f"passed/{MODEL}-development/00000009", value)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (as_if_it_had_passed, "has no passing evidence of development"),
        (by_hand, "the evidence waits for sign-off"),
        (as_another_build, "entry 2 (sign-off by Grace of QA"),
        (under_an_invented_digest, "was changed after it was written: its content is"),
        (without_the_rejection, "2 more decisions after entry 1"),
        (without_the_last_note, "not whole, and no decision in it counts"),
    ],
)
def test_no_forgery_promotes_a_build(
    world: World, attack: Callable[[World, Evidence], None], said: str
) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    attack(world, pending)

    refused = gate_and_promote(world.tools())

    assert refused.exit_code in (ExitCode.INCONCLUSIVE, ExitCode.GATE_FAILED)
    assert world.platform.calls == []
    shown = refused.conclusion + "".join(f"{step.title}: {step.detail}" for step in refused.steps)
    assert said in shown


def flips(text: str) -> list[bytes]:
    """`text` with one bit of one byte flipped, at every byte and of another meaning than before."""
    raw, found = text.encode(), []
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= (0x01, 0x20, 0x80, 0x04)[place % 4]
        try:
            same = json.loads(bytes(flipped)) == json.loads(raw)
        except ValueError:
            same = False
        if not same:
            found.append(bytes(flipped))
    return found


def test_a_flipped_byte_of_evidence_or_chain_refuses_and_is_named(
    world: World, tmp_path: Path
) -> None:
    del world.overrides[SIGN_OFF]
    pending = gate_and_promote(world.tools())
    decide(world, pending)
    database = Database(tmp_path / "state.db", durable=False)
    store = SqliteStore(database)
    names = ("decisions/", "decided/", f"evidence/{MODEL}/{pending.digest[7:]}",
             *(f"gate-runs/{MODEL}/{run[7:]}" for run in documents(pending)[1]))  # fmt: skip
    kept = {k: e.value for k, e in world.platform.store.entries.items() if k.startswith(names)}
    for key, value in kept.items():
        store.write(key, value, expect=None)
    policy, revision = world.tools().run.policy, world.platform.history(STAGING)[-1]

    def lacks() -> str:
        try:
            decisions = AuditLogReader(store).whole(MODEL)
            now = world.clock.now()
            return sign_off_of(store, decisions, policy, STAGING, revision, now)[1]
        except RolloutError as error:
            return f"{error} {error.remedy}" if error.remedy else ""

    assert lacks() == ""
    changed = "UPDATE documents SET value = CAST(? AS TEXT) WHERE key = ?"
    for key in kept:
        (row,) = database.rows("SELECT value FROM documents WHERE key = ?", (key,))
        where = (key.rpartition("/")[2], pending.digest, "entry 1", "entry 2", "state.db")
        for flipped in flips(row["value"]):
            database.execute(changed, (flipped, key))
            said = lacks()
            assert any(place in said for place in where), (key, flipped, said)
            wrong = any(word in said for word in ("changed", "not", "gone", "replaced", "schema"))
            assert wrong, (key, flipped, said)
            assert any(
                after in said
                for after in ("gate-and-promote", "history", "Restore", "Update", "Check")
            ), (key, flipped, said)
        database.execute(changed, (row["value"].encode(), key))
    assert lacks() == ""


def test_an_intact_chain_and_evidence_promote(world: World) -> None:
    del world.overrides[SIGN_OFF]
    decide(world, gate_and_promote(world.tools()))
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert world.platform.calls == RAMP


def test_a_digest_is_of_the_document_and_not_of_what_is_read_from_it(
    world: World, tmp_path: Path
) -> None:
    """Written by another version: a field more, and one less that has a default."""
    path = tmp_path / "evidence.json"
    pending = gate_and_promote(world.tools(), plan_only=True)
    write_evidence(pending, path)
    file = json.loads(path.read_text())
    document, (run,) = file["evidence"], file["evidence"]["runs"]
    run["weather"] = "fair"
    del run["family_risk"], run["gates"][0]["attachments"], document["previous"]
    document["gate_runs"] = [canonical_digest(run)]
    whole = {name: value for name, value in document.items() if name != "runs"}
    file["digest"] = digest = canonical_digest(whole)
    path.write_text(json.dumps(file))
    store = world.platform.store
    put(store, f"evidence/{MODEL}/{digest[7:]}", whole)
    put(store, f"gate-runs/{MODEL}/{document['gate_runs'][0][7:]}", run)
    decided = {
        "number": 1, "kind": "promotion", "model": MODEL, "environment": "staging",
        "at": "2026-11-18T10:00:00Z", "who": "ada", "why": "", "evidence": digest, "previous": "",
        "mood": "calm",
    }  # fmt: skip
    put(store, f"decisions/{MODEL}/00000001", {
        "decision": decided, "digest": canonical_digest(decided)
    })  # fmt: skip
    put(store, f"decided/{MODEL}", {"number": 1, "digest": canonical_digest(decided)})

    kept = stored_evidence(store, MODEL, digest)
    assert kept.runs[0].outcome is Outcome.PASS
    assert read_evidence(path) == kept
    assert {kept.digest, read_evidence(path).digest} == {digest}
    assert [each.digest for each in grown_from(store, MODEL, digest)] == [digest]
    chain = AuditLog(store)
    assert chain.verify(MODEL) == []
    after = chain.append(
        DecisionKind.PROMOTED, model=MODEL, environment="staging", at=world.clock.now(),
        who="ada", why="", evidence=digest,
    )  # fmt: skip
    assert after.previous == canonical_digest(decided)
    assert [each.number for each in AuditLogReader(store).whole(MODEL)] == [1, 2]


@pytest.mark.parametrize("schema", [3, 0, "2", True, None])
def test_evidence_of_another_schema_is_refused_with_the_version_to_take(
    world: World, schema: object
) -> None:
    document, _ = documents(gate_and_promote(world.tools(), plan_only=True))
    other = document | {"schema": schema, "suite_version": "9.1.0"}
    digest = canonical_digest(other)
    put(world.platform.store, f"evidence/{MODEL}/{digest[7:]}", other)
    with pytest.raises(UsageError) as refused:
        stored_evidence(world.platform.store, MODEL, digest)
    said = f"{refused.value} {refused.value.remedy}"
    assert "schema" in said
    assert ("Update to version 9.1.0 of vllm-rollout or later" in said) == (schema == 3)
