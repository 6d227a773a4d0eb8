"""Runs that ask for no gate stay as they would be without the suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = "def test_unit(): pass\n"


def run(folder: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    kept |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | more
    command = [sys.executable, "-m", "pytest", "-q", "-p", "vllm_rollout.pytest_plugin", *words]
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)


def test_a_teams_gate_run_without_options_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text("def test_ours(deployment, verdict): pass\n")
    done = run(tmp_path, "test_ours.py")
    assert done.returncode == 1, done.stdout
    assert "pytest -m staging --model" in done.stdout + done.stderr


@pytest.mark.parametrize("asked", [(), ("-m", "slow"), ("-k", "unit")])
def test_a_teams_gate_beside_unit_tests_does_not_stop_them(
    tmp_path: Path, asked: tuple[str, ...]
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmarkers = slow\n")
    (tmp_path / "test_unit.py").write_text(f"import pytest\n@pytest.mark.slow\n{UNIT}")
    (tmp_path / "test_gate.py").write_text(
        "import pytest\n@pytest.mark.staging\ndef test_gate(deployment): pass\n"
    )
    done = run(tmp_path, *asked)
    assert "not found in `markers`" not in done.stdout, done.stdout


@pytest.mark.parametrize("policy", ["{}\n", "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\n"])
def test_a_word_no_policy_names_asks_for_no_gates(tmp_path: Path, policy: str) -> None:
    (tmp_path / "rollout.yaml").write_text(policy)
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.fixture\ndef deployment(): return 1\n"
        "def test_own(deployment): assert deployment == 1\n"
    )
    done = run(tmp_path, "-m", "not slow")
    assert done.returncode == 0, done.stdout


def test_a_model_left_in_the_shell_asks_for_no_gates(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.fixture(params=['staging-m'])\n"
        "def deployment(request): return request.param\ndef test_own(deployment): pass\n"
    )
    done = run(tmp_path, VLLM_ROLLOUT_MODEL="llama-2-7b")
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("word", ["soak", "production"])
def test_leaving_out_a_mark_of_ones_own_asks_for_no_gates(tmp_path: Path, word: str) -> None:
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.fixture\ndef deployment(): return 1\n"
        "def test_own(deployment): assert deployment == 1\n"
    )
    assert run(tmp_path, "-m", f"not {word}").returncode == 0
