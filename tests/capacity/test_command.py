"""`vllm-rollout capacity` against real simulators: real load, found, refused, broken, interrupted.

The simulator serves 16 requests at a time for 0.4 s each: 40 a second and no more.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.interruptible import interruptible
from typer.testing import CliRunner, Result

from vllm_rollout.cli.main import app
from vllm_rollout.simulator.running import RunningSimulator

MODEL = "llama-2-7b"
DIALS: dict[str, Any] = {"max_num_seqs": 16, "ttft_seconds": 0.4, "inter_token_seconds": 0}
THROUGHPUT = 40.0
POLICY: dict[str, Any] = {
    "environments": {
        "development": {"load": {"max_tokens": 1, "warmup": "0s", "timeout": "4s"}},
        "staging": {
            "load": {"max_lag": "2s"},
            "gates": {
                "latency": False,
                "error_rate": False,
                "goodput": {"target": "90%", "latency": "1s"},
                "load_capacity": {"expected_rate": "10/s", "unserved": "10%"},
            },
        },
    },
    "capacity": {
        "precision": "40%",
        "probe": "2s",
        "proof": "30s",
        "settle": "20s",
        "max_rate": "100/s",
    },
}

pytestmark = [pytest.mark.timeout(900), pytest.mark.long, pytest.mark.alone]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a policy, to work in."""
    (tmp_path / "rollout.yaml").write_text(yaml.safe_dump(POLICY), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(url: str, *options: str) -> Result:
    return CliRunner().invoke(app, ["capacity", MODEL, "--base-url", url, *options])


def document(folder: Path) -> dict[str, Any]:
    """The one `capacity.json`, beside its page."""
    (path,) = folder.glob(f"reports/{MODEL}/*/capacity.json")
    assert path.with_suffix(".html").read_text(encoding="utf-8").startswith("<!doctype html>")
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def test_the_interval_covers_what_the_server_can_do(folder: Path) -> None:
    """Up to nearly all of its 40 a second are answered within 1 s, and above that they are not."""
    with RunningSimulator(**DIALS) as simulator:
        result = run(simulator.url, "--from", "30/s", "--json")
    assert result.exit_code == 0, result.output
    found = document(folder)
    capacity = found["capacity"]
    # Below it 5% to spare settle in a second; how far this machine is late takes some more.
    assert capacity["lower"] <= THROUGHPUT
    assert capacity["upper"] >= 0.8 * THROUGHPUT
    assert capacity["lower"] > 10
    assert len(found["probes"]) <= 12
    assert any(probe["outcome"] == "fail" for probe in found["probes"])
    assert found["exit_code"] == 0
    assert json.loads(result.stdout) == found
    assert "highest rate at which the SLOs hold" in result.stderr


def test_what_fails_at_any_rate_ends_with_the_traffic_not_carried(folder: Path) -> None:
    """Four of five answers are errors; single requests are answered by chance."""
    with RunningSimulator(ttft_seconds=0.01) as simulator:

        def spoil() -> None:
            while not simulator.request("GET", "/simulator/truth")["requests"]:
                time.sleep(0.02)
            simulator.turn(ttft_seconds=1.5)

        thread = threading.Thread(target=spoil)
        thread.start()
        result = run(simulator.url, "--probes", "4", "--set", "capacity.settle=1s")
        thread.join()
    # Slower than the limit under any load: nothing passes, and it is said.
    assert result.exit_code in (1, 3), result.output
    assert document(folder)["capacity"]["lower"] == 0


def test_a_server_that_dies_in_the_search_makes_it_inconclusive(folder: Path) -> None:
    with RunningSimulator(ttft_seconds=0.05, crash_after=25) as simulator:
        result = run(simulator.url, "--set", "capacity.settle=1s")
    assert result.exit_code == 3, result.output
    found = document(folder)
    assert found["capacity"]["ending"] == "not recovered"
    assert found["verdict"]["outcome"] == "inconclusive"
    assert all(probe["outcome"] != "pass" for probe in found["probes"]), found["probes"]


def test_a_generator_at_its_end_says_what_it_takes_and_nothing_of_the_server(folder: Path) -> None:
    policy = {**POLICY, "environments": {**POLICY["environments"]}}
    policy["environments"]["staging"] = {
        **POLICY["environments"]["staging"],
        "load": {"max_lag": "2s", "max_cpu": "0.001%"},
    }
    (folder / "rollout.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    with RunningSimulator(**DIALS) as simulator:
        result = run(simulator.url, "--from", "10/s")
    assert result.exit_code == 3, result.output
    found = document(folder)
    assert found["capacity"]["lower"] == 0
    assert {probe["outcome"] for probe in found["probes"]} == {"inconclusive"}
    assert "of a core (`load.max_cpu`: 0.001%)" in found["capacity"]["detail"]
    assert "the generator needs" in found["capacity"]["detail"]


def test_a_server_that_hangs_alone_is_not_searched(folder: Path) -> None:
    with RunningSimulator(hang=True) as simulator:
        result = run(simulator.url, "--set", "environments.staging.load.timeout=2s")
    assert result.exit_code == 3, result.output
    assert "a single request is not answered" in result.output
    assert document(folder)["probes"] == []


def test_a_capacity_above_the_highest_rate_is_at_least_that(folder: Path) -> None:
    with RunningSimulator(ttft_seconds=0.02) as simulator:
        result = run(simulator.url, "--from", "40/s", "--max-rate", "40/s")
    assert result.exit_code == 0, result.output
    found = document(folder)["capacity"]
    assert found["ending"] == "at least"
    assert found["upper"] is None
    assert 20 < found["lower"] <= 40


def test_ctrl_c_leaves_what_was_found_and_130(folder: Path) -> None:
    command = [str(Path(sys.executable).parent / "vllm-rollout"), "capacity", MODEL]
    with (
        RunningSimulator(ttft_seconds=0.05) as simulator,
        interruptible(
            [*command, "--base-url", simulator.url], env={**os.environ, "PYTHONUNBUFFERED": "1"}
        ) as search,
    ):
        assert search.stdout is not None
        for line in search.stdout:
            if line.strip().startswith("HELD"):
                break
        search.send_signal(signal.SIGINT)
        said = search.stdout.read()
        assert search.wait(60) == 130, said
    found = document(folder)
    assert found["capacity"]["ending"] == "interrupted"
    assert len(found["probes"]) >= 1


def test_live_traffic_is_not_overloaded_unless_told(folder: Path) -> None:
    refused = run("http://127.0.0.1:9", "-e", "production")
    assert refused.exit_code == 2
    assert "--overload-live-traffic" in refused.output
    told = run("http://127.0.0.1:9", "-e", "production", "--overload-live-traffic")
    assert told.exit_code == 4  # it went on, and nothing answers there
    assert not list(folder.glob("reports/*"))


@pytest.mark.parametrize(
    "options",
    [
        ("--from", "0/s"),
        ("--from", "200/s"),
        ("--precision", "0%"),
        ("--precision", "10"),
        ("-e", "development"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: tuple[str, ...]) -> None:
    result = run("http://127.0.0.1:9", *options)
    assert result.exit_code == 2, result.output
