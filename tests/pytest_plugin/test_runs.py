"""What pytest does around the gates: usage errors, selection, a team's own gates, policy files."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.ci_jobs import commands, github_job, given_outputs, told
from support.gate_runs import MODEL, evidence_in, run_gates, staging, started_gates
from support.world import passing_evidence

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.evidence import URL_ONLY, write_evidence
from vllm_rollout.resources import GATES


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no environment selected"),
        (("--model", MODEL), "pytest -m staging --model llama-2-7b"),
        (("-m", "not production", "--model", MODEL), "no environment selected"),
        (("-m", "staging"), "no model given"),
        (("-m", "staging", "--namespace", "x"), "--model llama-2-7b --namespace x"),
        ((f"{GATES}/test_pods.py::test_none", "--model", "m"), "-m staging --model m"),
        (("-m", "staging", "--model", "LLama 2"), "DNS-1123"),
        (("-m", "staging", "--model", MODEL, "--base-url", "nowhere"), "not an http(s) URL"),
        (("-m", "staging", "--model", MODEL, "--base-url", "http://"), "not an http(s) URL"),
        (
            ("-m", "staging", "--model", MODEL, "--policy-set", "confidence=200%"),
            "--policy-set: confidence",
        ),
    ],
)
def test_a_run_that_names_too_little_is_a_usage_error_that_teaches(
    tmp_path: Path, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    run = run_gates(tmp_path, str(GATES), *arguments, changes=())

    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout + run.stderr
    assert words in run.stdout + run.stderr
    assert not (tmp_path / "reports").exists()
    (_, end) = told(tmp_path)
    assert end.startswith("**NOT RUN** (exit code 4): ")
    assert given_outputs(tmp_path / "outputs")["verdict"] == "inconclusive"


def test_an_xdist_worker_hands_a_usage_error_to_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    run = started_gates(tmp_path, str(GATES), "-n", "1", changes=())

    assert run.returncode == pytest.ExitCode.USAGE_ERROR, run.stdout + run.stderr
    assert "no environment selected" in run.stdout + run.stderr
    assert not (tmp_path / "reports").exists()
    assert [line[:13] for line in told(tmp_path)] == ["### gates: no", "**NOT RUN** ("]


def test_collect_only_lists_the_gates_of_each_environment(tmp_path: Path) -> None:
    run = run_gates(
        tmp_path,
        str(GATES),
        "--collect-only",
        "-q",
        "--model",
        MODEL,
        "--base-url",
        "http://x",
        changes=(),
    )

    assert run.returncode == 0
    ids = [line.rpartition("::")[2] for line in run.stdout.splitlines() if "::" in line]
    assert "test_p95_latency[staging-llama-2-7b]" in ids
    assert "test_p95_latency[development-llama-2-7b]" not in ids
    assert "test_smoke[production-llama-2-7b]" in ids
    assert "test_load_capacity[production-llama-2-7b]" not in ids  # off by policy
    assert ids.index("test_health_200_and_a_token[development-llama-2-7b]") == 0
    assert not any("pods" in each for each in ids)  # a URL has no replicas


TEAM_GATES = '''
"""Our own gates."""
import pytest
from vllm_rollout.judge import check

def test_ours(deployment, verdict):
    verdict(check(True, "fine"))

@pytest.mark.staging
def test_only_staging(deployment):
    assert deployment.environment == "staging"

def test_judges_nothing(deployment, verdict):
    pass

@pytest.mark.development
def test_fails(deployment, verdict):
    print("::error::stolen\\n ::add-mask::a")
    assert not "a model's words"

def test_breaks(deployment, verdict):
    raise ValueError("no idea")

def test_has_nothing_to_do_with_deployments():
    pass
'''


def test_a_teams_own_gates_use_the_same_fixtures_and_fail_closed(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text(TEAM_GATES)

    run = run_gates(
        tmp_path,
        "test_ours.py",
        "-m",
        "staging or development",
        "--model",
        MODEL,
        "--base-url",
        "http://127.0.0.1:9",
        changes=(),
    )

    assert run.returncode == 1
    runs = {run.deployment.environment: run for run in evidence_in(tmp_path).runs}
    found = {gate.item.partition("[")[0]: gate for gate in runs["staging"].gates}
    assert found["test_ours"].outcome is Outcome.PASS
    assert found["test_judges_nothing"].outcome is Outcome.INCONCLUSIVE
    assert found["test_breaks"].outcome is Outcome.INCONCLUSIVE
    assert "no idea" in found["test_breaks"].error
    assert "stolen" in run.stdout
    assert commands(run.stdout) == []
    assert "test_only_staging" not in {g.item.partition("[")[0] for g in runs["development"].gates}
    assert runs["staging"].outcome is Outcome.INCONCLUSIVE  # the policy's own gates did not run


def test_the_evidence_option_writes_evidence_and_no_report(tmp_path: Path) -> None:
    run_gates(tmp_path, *staging("http://127.0.0.1:9"), "-k", "health", "--evidence", "out/e.json")

    assert json.loads((tmp_path / "out/e.json").read_text())["digest"].startswith("sha256:")
    assert not (tmp_path / "reports").exists()


def test_a_ci_is_told_the_changes_that_the_report_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    url, name = "http://127.0.0.1:9", "20260127-093000-0a1b"
    before = passing_evidence(Deployment(MODEL, "staging"), datetime(2026, 1, 27, tzinfo=UTC))
    (passed,) = before.runs
    passed = replace(passed, platform=URL_ONLY, base_url=f"{url}, by --base-url")
    before = replace(before, run_id=name, runs=(passed,))
    write_evidence(before, tmp_path / "reports" / MODEL / name / "evidence.json")

    run_gates(tmp_path, *staging(url), "-k", "health")

    (page,) = tmp_path.glob("reports/*/*/report.html")
    assert f"The last passing run before this: {name}" in page.read_text(encoding="utf-8")
    summary = (tmp_path / "summary").read_text(encoding="utf-8")
    _, _, changes = summary.partition(f"Changed since `{name}`, the last run of staging")
    assert "- policy: 0 → " in changes


def test_a_broken_policy_file_stops_gates_and_no_other_tests(tmp_path: Path) -> None:
    (tmp_path / "rollout.yaml").write_text("confidense: 99%\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")

    assert run_gates(tmp_path, "test_other.py", changes=()).returncode == 0
    for arguments in (("--model", MODEL, "-m", "staging"), ("-m", "staging")):
        run = run_gates(tmp_path, str(GATES), *arguments, changes=())
        assert run.returncode != 0
        assert "rollout.yaml:1:1: confidense: unknown key" in run.stdout + run.stderr


def test_checks_before_a_deployment_are_made_only_when_asked_for(tmp_path: Path) -> None:
    listed = ("--collect-only", "-q", "--model", MODEL, "--platform", "kubernetes")
    plain = run_gates(tmp_path, *listed, "-m", "staging", str(GATES))
    assert "test_pods" in plain.stdout
    assert "test_preflight" not in plain.stdout
    for asked in (
        ("-m", "staging and preflight", str(GATES)),
        ("-m", "staging", str(GATES / "test_preflight.py")),
    ):
        found = run_gates(tmp_path, *listed, *asked, changes=("preflight.model=off",))
        assert "test_preflight.py::test_gpus[staging-llama-2-7b]" in found.stdout
        assert "test_model" not in found.stdout
