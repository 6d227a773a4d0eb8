"""Runs that ask for no gate stay as they would be without the suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ci_jobs import github_job
from support.forked import pytest_in

from vllm_rollout.model.evidence import read_evidence

UNIT = "def test_unit(): pass\n"


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return pytest_in(folder, ["-q", *words])


THEIRS = """
import pytest
def pytest_addoption(parser):
    parser.addini("base_url", "as pytest-base-url has it")
    parser.addoption("--base-url", default=None)
    parser.addoption("--workers", type=int, default=2)
    parser.getgroup("theirs").addoption("--values", action="store_true")
def pytest_configure(config):
    config.option.base_url = config.getoption("base_url") or config.getini("base_url")
    config.addinivalue_line("markers", "staging: theirs")
@pytest.fixture(scope="session")
def base_url(request): return request.config.getoption("base_url")
"""
NAMES = ("client", "settings", "policy", "load", "metrics", "cluster", "deployment", "verdict",
         "servers", "slo", "preflight", "judged_load")  # fmt: skip
FIXTURES = "".join(f"@pytest.fixture\ndef {name}(request): return {name!r}\n" for name in NAMES)
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--model")
    parser.addoption("--policy", dest="policy_file")
"""
TESTS = f"""
import pytest
pytestmark = pytest.mark.staging
def test_theirs(base_url, request, {", ".join(NAMES)}):
    assert ({", ".join(NAMES)}) == {NAMES!r}
    assert base_url == "http://127.0.0.1:9"
    found = request.config.pluginmanager.list_name_plugin()
    ours = [name for name, plugin in found if name.startswith("vllm_rollout") and plugin]
    assert ours == ["vllm_rollout.pytest_plugin"]
    assert not hasattr(request.config.option, "vllm_rollout")
    with pytest.raises(ValueError): request.config.getoption("--kube-context")
"""


@pytest.mark.parametrize(
    "asked",
    [
        ("-o", "base_url=http://127.0.0.1:9"),
        ("-m", "staging", "--base-url", "http://127.0.0.1:9", "--workers", "3", "--values"),
        ("--base-url=http://127.0.0.1:9", "--model", "gpt2", "--policy", "theirs.py"),
    ],
)
@pytest.mark.parametrize("order", [("-p", "theirs"), ("-p", "vllm_rollout.pytest_plugin")])
def test_fixtures_and_options_of_others_stay_theirs(
    tmp_path: Path, asked: tuple[str, ...], order: tuple[str, ...]
) -> None:
    (tmp_path / "theirs.py").write_text(f"{THEIRS}{FIXTURES}")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_theirs.py").write_text(TESTS)
    done = pytest_in(tmp_path, ["-o", "pythonpath=.", *order, "-p", "theirs", *asked])

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_an_option_of_two_plugins_works_for_both(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    (tmp_path / "test_ours.py").write_text(
        "from vllm_rollout.judge import check\n"
        "def test_ours(deployment, verdict, base_url):\n"
        "    verdict(check(base_url == 'http://127.0.0.1:9', base_url))\n"
    )
    gates = ("-m", "staging", "--model", "m", "--evidence", "e.json", "test_ours.py")
    plugin = ("-o", "pythonpath=.", "-p", "theirs", "-o", "base_url=http://127.0.0.1:7")
    both = pytest_in(tmp_path, [*plugin, *gates, "--base-url", "http://127.0.0.1:9"])
    runs = read_evidence(tmp_path / "e.json").runs
    configured = pytest_in(tmp_path, [*plugin, *gates, "--platform", "local"])

    assert (both.returncode, [run.platform for run in runs]) == (0, ["url"]), both.stdout
    assert runs[0].base_url.startswith("http://127.0.0.1:9"), "what was typed, for both"
    assert configured.returncode == 1, "an address that is configured for theirs is not ours"
    assert read_evidence(tmp_path / "e.json").runs[0].platform == "local"


@pytest.mark.parametrize(
    ("word", "said"), [("staging", "no model given"), ("stagin", "did you mean staging?")]
)
def test_a_mark_without_model_says_what_to_type_and_keeps_the_exit_code(
    tmp_path: Path, word: str, said: str
) -> None:
    done = pytest_in(tmp_path, ["-m", word])
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert said in done.stdout


def test_a_teams_gate_run_without_options_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text("def test_ours(deployment, verdict): pass\n")
    done = run(tmp_path, "test_ours.py")
    assert done.returncode == 1, done.stdout
    assert "pytest -m staging --model" in done.stdout


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


@pytest.mark.parametrize(("left", "asked"), [("MODEL", ()), ("API_KEY", ("-m", "staging"))])
def test_what_is_left_in_the_shell_asks_for_no_gates(
    tmp_path: Path, left: str, asked: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    github_job(monkeypatch, tmp_path)
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.fixture(params=['staging-m'])\n"
        "def deployment(request): return request.param\n"
        "@pytest.mark.staging\ndef test_own(deployment): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "vllm_rollout.pytest_plugin", *asked],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", f"VLLM_ROLLOUT_{left}": "llama"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
    assert not (tmp_path / "summary").exists()


@pytest.mark.parametrize("word", ["soak", "production"])
def test_leaving_out_a_mark_of_ones_own_asks_for_no_gates(tmp_path: Path, word: str) -> None:
    (tmp_path / "test_own.py").write_text(
        "import pytest\n@pytest.fixture\ndef deployment(): return 1\n"
        "def test_own(deployment): assert deployment == 1\n"
    )
    assert run(tmp_path, "-m", f"not {word}").returncode == 0
