"""Output at the end of a rollout: where its report is, the verdict, and what is next."""

from pathlib import Path

import pytest
from support.ci_jobs import github_job
from support.world import SIGN_OFF, World

from vllm_rollout.cli.run_tools import show_end
from vllm_rollout.judge import Outcome
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.leased_run import RunTools


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the record in deployments/


def ended(tools: RunTools, capsys: pytest.CaptureFixture[str], *, verbose: bool = False) -> str:
    show_end(gate_and_promote(tools), tools, verbose=verbose)
    return capsys.readouterr().out


def test_a_promotion_ends_in_its_verdict_and_what_is_next(
    world: World,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    github_job(monkeypatch, tmp_path)
    *_, report, title, sentence, following = ended(world.tools(), capsys).splitlines()
    assert report.startswith("report: ")
    assert title == "llama-2-7b: rollout PASS"
    assert sentence.startswith("Promoted build ")
    assert following == "next: vllm-rollout status llama-2-7b"
    told = (tmp_path / "summary").read_text(encoding="utf-8")
    assert "**Next:** `vllm-rollout status llama-2-7b`" in told


def test_a_failed_gate_ends_in_its_remedy_and_v_has_every_check(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.gates.outcomes["staging"] = Outcome.FAIL
    tools = world.tools()
    evidence = gate_and_promote(tools)
    show_end(evidence, tools)
    short = capsys.readouterr().out
    show_end(evidence, tools, verbose=True)
    whole = capsys.readouterr().out
    assert len(short.splitlines()) <= 15
    assert "What was found" in whole
    assert "What was found" not in short
    (sentence, *following) = short.partition("rollout FAIL\n")[2].splitlines()
    assert sentence.startswith("Gates failed, nothing promoted")
    remedies = [v.remedy for run in evidence.runs for gate in run.gates for v in gate.verdicts]
    assert following == [f"next: {remedy}" for remedy in filter(None, remedies)][:1]


def test_waiting_for_a_sign_off_names_its_command_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    del world.overrides[SIGN_OFF]
    printed = ended(world.tools(), capsys)
    assert "llama-2-7b: rollout WAITS FOR SIGN-OFF" in printed
    assert printed.count("vllm-rollout sign-off") == 1
    assert printed.splitlines()[-1].startswith("sign it off: vllm-rollout sign-off llama-2-7b ")
