"""What starting costs: the libraries that are imported, counted in a fresh interpreter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from vllm_rollout.cli.main import _COMMANDS, _imported, app

HEAVY = {
    "aiohttp", "gevent", "httpx", "icalendar", "jinja2", "kubernetes", "locust", "numpy",
    "pydantic", "recurring_ical_events", "scipy", "tenacity", "uvloop",
}  # fmt: skip
FOR_STATUS = {"pydantic"}
FOR_GATES = {"numpy", "pydantic"}


def imported_by(code: str, *, folder: Path | None = None) -> set[str]:
    """The heavy libraries that a fresh interpreter has imported after `code`."""
    return HEAVY & modules_after(code, folder=folder)


def modules_after(code: str, *, folder: Path | None = None) -> set[str]:
    """The modules that a fresh interpreter has imported after `code`."""
    report = "import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_the_command_lines_import_nothing_heavy() -> None:
    assert imported_by("import vllm_rollout.cli.main, vllm_rollout.cli.rollout_commands") == set()


@pytest.mark.parametrize("command", ["--version", "--help"])
def test_version_and_help_import_nothing_heavy(command: str) -> None:
    code = f"from vllm_rollout.cli.main import app; app([{command!r}], standalone_mode=False)"
    assert imported_by(code) == set()


def test_status_imports_no_statistics_and_no_http_client_before_it_asks() -> None:
    code = "import vllm_rollout.cli.status, vllm_rollout.settings as s; s.load_settings()"
    assert imported_by(code) <= FOR_STATUS


def pytest_run(*arguments: str) -> str:
    return f"import pytest; pytest.main(['-q', '-p', 'vllm_rollout.pytest_plugin', *{arguments!r}])"


def test_a_run_without_gates_imports_the_door_only(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    imported = modules_after(pytest_run(), folder=tmp_path)
    assert imported & HEAVY == set()
    assert {name for name in imported if name.startswith("vllm_rollout.")} == {
        "vllm_rollout.pytest_plugin",
        "vllm_rollout.pytest_plugin.gate_options",
        "vllm_rollout.resources",
        "vllm_rollout.variables",
    }


def test_collecting_gates_imports_what_they_judge_with(tmp_path: Path) -> None:
    staging = ("--co", "-m", "staging", "--model", "m", "--base-url", "http://127.0.0.1:9")
    assert imported_by(pytest_run(*staging), folder=tmp_path) <= FOR_GATES


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_a_commands_one_line_of_help_is_its_own_first_sentence(name: str) -> None:
    own = " ".join((_imported(name).help or "").split())
    assert own.startswith(_COMMANDS[name].help)
    assert re.match(r"\s|$", own[len(_COMMANDS[name].help) :])


def test_every_command_is_listed_once() -> None:
    listed = get_command(app).commands  # type: ignore[attr-defined]
    assert set(listed) == set(_COMMANDS)


def test_connecting_to_a_cluster_imports_no_api_group_before_it_is_asked(tmp_path: Path) -> None:
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    config = {
        "current-context": "c",
        "clusters": [cluster],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    code = (
        "import sys; from vllm_rollout.platform.kubernetes.api import connect; connect(None);"
        "print([m for m in sys.modules if m.startswith('kubernetes.client.api.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
