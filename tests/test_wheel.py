"""The wheel carries gates, load tests, charts and default policy, and works in an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vllm_rollout.simulator.running import RunningSimulator

ROOT = Path(__file__).resolve().parents[1]
MODEL = "llama-2-7b"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel unpacked, as an installer would."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_finds_its_own_files_and_not_the_checkouts(installed: Path, tmp_path: Path) -> None:
    code = (
        "from vllm_rollout import resources as r\n"
        "from vllm_rollout.policy import load_policy\n"
        "load_policy(None)\n"
        "print(r.GATES / 'test_health.py', r.LOADTESTS / 'locustfile.py', "
        "r.CHARTS / 'vllm-deployment/Chart.yaml', r.DEFAULT_POLICY, r.POLICY_SCHEMA, sep='\\n')"
    )
    done = run(installed, tmp_path, "-c", code)

    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_file()
        assert Path(line).is_relative_to(installed)


def test_its_gates_and_its_load_run_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    changes = ("load.rate=50/s", "load.duration=2s", "load.warmup=0s", "load.max_lag=1m")
    with RunningSimulator(model=MODEL, ttft_seconds="0.005") as server:
        done = run(
            installed,
            tmp_path,
            *("-m", "pytest", "-m", "staging", "--model", MODEL, "--base-url", server.url),
            *("-k", "health or latency", "-p", "no:cacheprovider"),
            *(w for c in changes for w in ("--policy-set", f"environments.staging.{c}")),
        )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert len(list(tmp_path.glob(f"reports/{MODEL}/*/report.html"))) == 1


def test_its_gates_are_found_in_an_environment_inside_the_repository(
    installed: Path, tmp_path: Path
) -> None:
    """pytest passes a virtual environment by, and `testpaths` know nothing of it."""
    site = tmp_path / ".venv" / "lib" / "site-packages"
    shutil.copytree(installed, site)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = app\nmarkers = staging: ours\n")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "test_app.py").write_text(
        "import pytest\n@pytest.mark.staging\ndef test_own(): pass\n"
    )
    asked = ("-m", "staging", "--model", MODEL, "--base-url", "http://127.0.0.1:9")
    only = ("-k", "health or own", "--evidence", "evidence.json")
    done = run(site, tmp_path, "-m", "pytest", *asked, *only)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "1 inconclusive" in done.stdout


def test_its_command_lines_teach(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-m", "vllm_rollout", "gate-and-promote", "--help")

    assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 promoted" in " ".join(done.stdout.split())
