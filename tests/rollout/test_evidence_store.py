"""Evidence by its digest: one growing document per run, and one door to it."""

import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.ci_jobs import github_job
from support.crashing import Killed
from support.signing import public_line
from support.simulated import MemoryStore
from support.world import MODEL, PRODUCTION, STAGING, World, builds, failing_when, healthy

from vllm_rollout.cli.run_tools import show_end
from vllm_rollout.model.deployment import canonical_digest
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.model.evidence import Evidence, documents, read_evidence, write_evidence
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.base import Entry
from vllm_rollout.policy.signing import EvidenceSigning
from vllm_rollout.rollout.audit_log import AuditLog, Decision
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import (
    PassedRevisions,
    find_evidence,
    grown_from,
    store_evidence,
    stored_evidence,
)

PACKAGE = Path(__file__).parents[2] / "vllm_rollout"
SCHEMA_1 = Path(__file__).parents[1] / "data" / "evidence-of-schema-1.json"


def on_record(world: World) -> Evidence:
    """The evidence by which the revision that production runs has passed."""
    store = world.platform.store
    revision = world.platform.releases[PRODUCTION.release][-1]
    digest = PassedRevisions(store).evidence_of(PRODUCTION, revision)
    assert digest is not None
    return stored_evidence(store, MODEL, digest)


def environments(evidence: Evidence) -> list[str]:
    return [run.deployment.environment for run in evidence.runs]


def decisions(world: World) -> dict[str, Decision]:
    log = AuditLog(world.platform.store)
    assert log.verify(MODEL) == []
    return {str(each.kind): each for each in log.of(MODEL)}


def test_what_is_recorded_of_production_has_its_gates_and_the_exit_code(world: World) -> None:
    run = f"gate-runs/{MODEL}/"
    of_development = set(world.platform.store.keys(run))

    evidence = gate_and_promote(world.tools())

    assert on_record(world) == evidence
    assert environments(evidence) == ["staging", "production"]
    assert evidence.exit_code == ExitCode.OK
    taken = decisions(world)
    assert taken["promoted"].evidence == evidence.digest
    chain = list(grown_from(world.platform.store, MODEL, evidence.digest))
    assert taken["promotion"].evidence == chain[-1].digest
    assert [environments(each) for each in chain] == [
        ["staging", "production"],
        ["staging", "production"],
        ["staging"],
    ]
    kept = set(world.platform.store.keys(run)) - of_development
    assert len(kept) == 2, "each gate run is kept once"


def on_watch(world: World) -> bool:
    journal = world.journal()
    return journal is not None and journal.phase.value == "watch"


def test_a_rollback_is_on_record_with_its_exit_code_and_stays_withdrawn(world: World) -> None:
    world.probes = failing_when(lambda: on_watch(world))
    evidence = gate_and_promote(world.tools())

    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert environments(evidence) == ["staging", "production"]
    passed = PassedRevisions(world.platform.store)
    history = world.platform.releases[PRODUCTION.release]
    (failed,) = [r for r in history if passed.evidence_of(PRODUCTION, r) == evidence.digest]
    first, second = builds(world)
    assert failed.build.digest == second
    good = passed.good_revision(PRODUCTION, history)
    assert good is not None
    assert good.build.digest == first


def test_a_run_that_goes_on_with_a_killed_one_goes_on_with_its_evidence(world: World) -> None:
    def killed(_seconds: float) -> ProbeSample:
        if on_watch(world):
            raise Killed
        return healthy(0)

    world.probes = killed
    with pytest.raises(Killed):
        gate_and_promote(world.tools())
    before = on_record(world)
    assert (environments(before), before.exit_code) == (["staging", "production"], None)

    world.probes = healthy
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.OK
    assert on_record(world) == evidence
    assert evidence.previous == before.digest
    assert evidence.runs == before.runs
    assert evidence.run_id != before.run_id
    assert decisions(world)["promoted"].evidence == evidence.digest


def change(store: MemoryStore, key: str, **fields: Any) -> None:
    entry = store.entries[key]
    store.entries[key] = Entry(key, {**entry.value, **fields}, entry.version)


def tampered(store: MemoryStore, evidence: Evidence) -> Sequence[tuple[str, Callable[[], None]]]:
    _, runs = documents(evidence)
    key = f"evidence/{MODEL}/{evidence.digest[7:]}"
    run = f"gate-runs/{MODEL}/{next(iter(runs))[7:]}"
    return (
        ("was changed after it was written", lambda: change(store, key, exit_code=0)),
        ("was changed after it was written", lambda: change(store, run, changed="no")),
        ("was changed after it was written", lambda: change(store, key, gate_runs=[])),
        ("is no longer kept", lambda: store.entries.pop(run) and None),
        ("is no longer kept", lambda: store.entries.pop(key) and None),
        ("schema 3", lambda: change(store, key, schema=3)),
    )


def test_content_without_its_digest_is_refused_whoever_asks(new_world: Callable[[], World]) -> None:
    for case in range(6):
        world = new_world()
        del world.overrides["environments.staging.sign_off"]
        evidence = gate_and_promote(world.tools())
        store = world.platform.store
        said, tamper = tampered(store, evidence)[case]
        assert stored_evidence(store, MODEL, evidence.digest) == evidence
        tamper()
        with pytest.raises(UsageError, match=said):
            stored_evidence(store, MODEL, evidence.digest)
        if "no longer" not in said:
            with pytest.raises(UsageError, match=said):
                find_evidence(store, MODEL, evidence.digest)
            with pytest.raises(UsageError, match="changed after"):
                store_evidence(store, evidence)
        assert any(evidence.digest in line for line in AuditLog(store).verify(MODEL))


def test_a_promotion_that_ends_on_other_evidence_is_named(world: World) -> None:
    evidence = gate_and_promote(world.tools())
    other = json.loads(json.dumps(documents(evidence)[0])) | {"previous": ""}
    store, digest = world.platform.store, canonical_digest(other)
    store.write(f"evidence/{MODEL}/{digest[7:]}", other, expect=None)
    begun = decisions(world)["promotion"]
    log = AuditLog(store)
    log.append(
        type(begun.kind)("promoted"), model=MODEL, environment="production", at=begun.at,
        who="eve", why="so it is", evidence=digest,
    )  # fmt: skip
    (wrong,) = log.verify(MODEL)
    assert f"has not grown from {begun.evidence}" in wrong


def test_passing_evidence_is_what_is_kept_whole_and_signed_as_the_policy_asks(
    world: World,
) -> None:
    evidence, store = gate_and_promote(world.tools()), world.platform.store
    passed = PassedRevisions(store)
    assert list(passed.passing_evidence(PRODUCTION, EvidenceSigning())) == [evidence]
    signed = EvidenceSigning(signed_by={"ci": public_line("ci")})
    assert list(passed.passing_evidence(PRODUCTION, signed)) == []
    (key,) = store.keys(f"evidence/{MODEL}/{evidence.digest.removeprefix('sha256:')}")
    store.entries.pop(key)
    assert list(passed.passing_evidence(PRODUCTION, EvidenceSigning())) == []


def test_evidence_of_schema_1_is_read_where_it_is_kept(world: World) -> None:
    old, document = read_evidence(SCHEMA_1), json.loads(SCHEMA_1.read_text())["evidence"]
    store = world.platform.store
    store.write(f"evidence/{MODEL}/{old.digest[7:]}", document, expect=None)
    kept = stored_evidence(store, MODEL, old.digest)
    assert kept == old
    assert kept.digest == canonical_digest(document)


def test_a_file_is_refused_when_any_gate_run_in_it_was_changed(
    world: World, tmp_path: Path
) -> None:
    evidence, path = gate_and_promote(world.tools()), tmp_path / "evidence.json"
    write_evidence(evidence, path)
    assert read_evidence(path) == evidence

    def fail(runs: list[Any], place: int) -> None:
        runs[place]["gates"][0]["verdicts"][0]["outcome"] = "fail"

    tampering: tuple[Callable[[list[Any]], object], ...] = (
        lambda runs: fail(runs, 0),
        lambda runs: fail(runs, 1),
        lambda runs: runs.append(runs[0]),
        lambda runs: runs.pop(),
        lambda runs: runs.reverse(),
    )
    for tamper in tampering:
        file = json.loads(path.read_text())
        tamper(file["evidence"]["runs"])
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(file))
        with pytest.raises(UsageError, match="changed"):
            read_evidence(changed)


def test_nothing_goes_round_the_door() -> None:
    """Keys of evidence are made, and its documents turned into evidence, in one place each."""
    keys, parses, opens = set(), set(), set()
    for file in PACKAGE.rglob("*.py"):
        name = str(file.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if node.value.startswith(("evidence/", "gate-runs/")):
                    keys.add(name)
            elif isinstance(node, ast.Subscript) and ast.unparse(node) == "TypeAdapter[Evidence]":
                parses.add(name)
            elif isinstance(node, ast.Name) and node.id == "verified":
                opens.add(name)
    # The second routes documents to the stores of clusters, and opens none.
    assert keys == {"rollout/evidence_store.py", "platform/clusters.py"}
    assert parses == {"model/evidence.py"}
    assert opens == {"rollout/evidence_store.py", "model/evidence.py"}


def test_a_ci_is_told_what_changed_since_the_pass_in_the_store(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    github_job(monkeypatch, tmp_path)
    first = gate_and_promote(world.tools())
    world.pass_development(world.platform.deploy(STAGING, {"version": 3}))
    tools = world.tools()

    show_end(gate_and_promote(tools), tools)

    for file in ("report.html", "summary"):
        assert first.run_id in (tmp_path / file).read_text(encoding="utf-8")
