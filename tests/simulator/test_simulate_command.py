"""The command and the process: starts, says where it listens, ends as it should."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from vllm_rollout.model.errors import DeployError, UnreachableError, UsageError
from vllm_rollout.simulator.__main__ import app
from vllm_rollout.simulator.running import RunningSimulator

HELLO = {"prompt": "Hello", "max_tokens": 2}


def test_ends_cleanly_on_sigterm_with_requests_open() -> None:
    with RunningSimulator(hang=True) as running:
        stream = {**HELLO, "stream": True}
        with (
            httpx.Client(base_url=running.url) as client,
            client.stream("POST", "/v1/completions", json=stream) as answer,
        ):
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(10) == 0
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
    with pytest.raises(UnreachableError) as error:
        running.truth()
    assert error.value.address.startswith(running.url)


def test_finishes_what_runs_when_given_time() -> None:
    with RunningSimulator(ttft_seconds=0.3, shutdown_timeout=20) as running:
        stream = {**HELLO, "stream": True}
        with (
            httpx.Client(base_url=running.url, timeout=20) as client,
            client.stream("POST", "/v1/completions", json=stream) as answer,
        ):
            running.process.send_signal(signal.SIGTERM)
            assert answer.read().endswith(b"data: [DONE]\n\n")
        assert running.process.wait(20) == 0


def test_crashes_with_code_1_after_as_many_requests() -> None:
    with RunningSimulator(ttft_seconds=0) as running:
        with httpx.Client(base_url=running.url) as client:
            assert client.post("/v1/completions", json=HELLO).status_code == 200
            running.turn(crash_after=2)
            for _ in range(2):
                assert client.post("/v1/completions", json=HELLO).status_code == 200
            assert client.post("/v1/completions", json={"prompt": ""}).status_code == 400
            with pytest.raises(httpx.RemoteProtocolError):
                client.post("/v1/completions", json=HELLO)
        assert running.process.wait(10) == 1


def test_does_not_listen_before_its_start_delay() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    slow = RunningSimulator(port=port, start_delay=3600, ready_timeout_seconds=3)
    with pytest.raises(DeployError, match="not listening within 3 s"):
        slow.start()
    assert slow.process.returncode is not None


def test_ends_with_its_parent() -> None:
    with RunningSimulator() as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(10) == 0


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    names = ("key-of-alice", "key-of-bob", "key-of-carol")
    keys.write_text("{}, {}\n{}\n".format(*names))
    with RunningSimulator(api_key_file=keys, ttft_seconds=0) as running:
        command = Path(f"/proc/{running.pid}/cmdline").read_text()
        assert not any(key in command for key in names)
        for key in names:
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{running.url}/v1/models").status_code == 401


def test_a_dial_turned_wrongly_is_a_usage_error() -> None:
    with RunningSimulator() as running:
        assert running.turn(error_rate=0.5)["error_rate"] == 0.5
        with pytest.raises(UsageError, match="eror_rate: no such dial") as error:
            running.turn(eror_rate=0.5)
        assert "error_rate" in error.value.remedy


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--error-rate", "20"], 2, "error_rate: Input should be less than or equal to 1"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    arguments: list[str], code: int, told: str, tmp_path: Path
) -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "vllm_rollout.simulator", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root, "COLUMNS": "200"},
        timeout=60,
    )
    assert ended.returncode == code
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ttft-seconds", "slow"], "is not a latency distribution"),
        (["--api-key-file", "no-such-file"], "API key file no-such-file cannot be read"),
        (["--no-such-dial", "1"], "No such option"),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["--port", "0", *arguments], env={"COLUMNS": "200"})
    assert ended.exit_code == 2 or isinstance(ended.exception, UsageError)
    assert told in ended.stderr + str(ended.exception)
    assert ended.stdout == ""
