"""Running gates as a process: no evidence, or evidence that does not fit, never passes."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.simulated import WEDNESDAY
from support.world import STAGING, passing_evidence

from vllm_rollout.judge.alpha_spending import RepeatedGates
from vllm_rollout.model.evidence import write_evidence
from vllm_rollout.rollout.gates import GateRunner, GatesCrashedError
from vllm_rollout.settings import load_settings

PASSING = passing_evidence(STAGING, WEDNESDAY)


def runner(*options: str) -> GateRunner:
    return GateRunner(options=options, on_event=lambda _kind, _text: None)


def test_pytest_that_ends_without_evidence_is_a_crash_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(GatesCrashedError, match="unrecognized arguments: --nonsense") as caught:
        runner("--nonsense").run(STAGING, tmp_path)
    assert "pytest.log" in caught.value.remedy


def test_passing_gates_beside_a_failing_test_are_not_a_pass(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    write_evidence(PASSING, file)

    assert runner()._read(file, tmp_path / "pytest.log", 0).gates
    with pytest.raises(GatesCrashedError, match="ended with 1"):
        runner()._read(file, tmp_path / "pytest.log", 1)


def test_a_folder_that_has_a_run_tells_nothing_of_the_next(tmp_path: Path) -> None:
    """Gates are asked again in the folder in which they were asked before."""
    told: list[str] = []
    gates = GateRunner(options=(), on_event=lambda _kind, text: told.append(text))
    write_evidence(PASSING, tmp_path / "evidence.json")
    (tmp_path / "events.jsonl").write_text('{"event": "gate", "text": "of before"}\n')

    with pytest.raises(GatesCrashedError, match="without evidence"):
        replace(gates, options=("--nonsense",)).run(STAGING, tmp_path)
    assert told == []


def test_evidence_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    write_evidence(replace(PASSING, model="m"), file)
    file.write_text(file.read_text().replace("the test says so", "the test says no"))

    with pytest.raises(Exception, match="changed after it was written"):
        runner()._read(file, tmp_path / "pytest.log", 0)


@pytest.mark.parametrize("asks", [0, 1, 10, 86_400])
def test_gates_that_are_asked_again_read_the_confidence_that_a_rollout_gives_them(
    asks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(GateRunner, "_run", lambda *run: given.extend(run[-1]))
    risk = RepeatedGates(confidence=0.95, more=asks)
    for confidence in (risk.first, risk.again):
        given.clear()
        runner().run(STAGING, tmp_path, confidence=confidence)
        assert given[0] == "--confidence"
        assert load_settings(base_url="http://h", confidence=given[1]).confidence == confidence
