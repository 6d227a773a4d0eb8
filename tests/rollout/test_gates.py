"""Running gates as a process: no evidence, or evidence that does not fit, never passes."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.world import STAGING

from vllm_rollout.judge import check
from vllm_rollout.model.evidence import Evidence, GateResult, GateRun, write_evidence
from vllm_rollout.rollout.gates import GateRunner, GatesCrashedError

NOW = datetime(2026, 11, 18, tzinfo=UTC)


def runner(*options: str) -> GateRunner:
    return GateRunner(options=options, on_event=lambda _kind, _text: None)


def passing() -> Evidence:
    gate = GateResult(
        gate="health",
        item="test_health",
        title="Health",
        verdicts=(check(True, "well"),),
        started=NOW,
        duration_seconds=0.1,
    )
    run = GateRun(
        deployment=STAGING,
        base_url="http://x",
        platform="local",
        revision=1,
        build=None,
        policy_digest="sha256:0",
        started=NOW,
        finished=NOW,
        expected=("health",),
        gates=(gate,),
        loads={},
    )
    return Evidence(
        run_id="r", model="m", suite_version="0", started=NOW, finished=NOW, runs=(run,)
    )


def test_pytest_that_ends_without_evidence_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(GatesCrashedError, match="unrecognized arguments: --nonsense") as caught:
        runner("--nonsense").run(STAGING, tmp_path)
    assert "pytest.log" in caught.value.remedy


def test_passing_gates_beside_a_failing_test_are_not_a_pass(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    write_evidence(passing(), file)

    assert runner()._read(file, tmp_path / "pytest.log", 0).gates
    with pytest.raises(GatesCrashedError, match="ended with 1"):
        runner()._read(file, tmp_path / "pytest.log", 1)


def test_a_folder_that_has_a_run_tells_nothing_of_the_next(tmp_path: Path) -> None:
    """Gates are asked again in the folder in which they were asked before."""
    told: list[str] = []
    gates = GateRunner(options=(), on_event=lambda _kind, text: told.append(text))
    write_evidence(passing(), tmp_path / "evidence.json")
    (tmp_path / "events.jsonl").write_text('{"event": "gate", "text": "of before"}\n')

    with pytest.raises(GatesCrashedError, match="without evidence"):
        replace(gates, options=("--nonsense",)).run(STAGING, tmp_path)
    assert told == []


def test_evidence_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    write_evidence(replace(passing(), model="m"), file)
    file.write_text(file.read_text().replace('"well"', '"very well"'))

    with pytest.raises(Exception, match="changed after it was written"):
        runner()._read(file, tmp_path / "pytest.log", 0)
