"""`vllm-rollout top`: a view of real figures that goes on, and ends when it is asked to."""

import io
import json
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from vllm_rollout.cli import options, top
from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures

MODEL = "llama-2-7b"
Read = Callable[[Deployment], list[SideFigures]]


def well(deployment: Deployment) -> list[SideFigures]:
    at = datetime.now(UTC)
    figures = {name: Figure(value=0.5, source="Prometheus", at=at) for name in FigureName}
    return [SideFigures(environment=deployment.environment, revision=1, figures=figures)]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs `top MODEL` in a folder of its own; `read` is how each deployment is read."""
    monkeypatch.chdir(tmp_path)

    def ask(read: Read, *words: str) -> Result:
        class Fake:
            def __init__(self, *_: Any) -> None: ...

            def read(
                self, deployment: Deployment, *, window: timedelta, now: datetime
            ) -> list[SideFigures]:
                return read(deployment)

            def close(self) -> None: ...

        monkeypatch.setattr(top, "LiveFigures", Fake)
        command = ["top", MODEL, "--platform", "local", *words]
        return CliRunner().invoke(app, command, catch_exceptions=False)

    return ask


def test_what_fails_shows_in_its_line_and_the_view_goes_on(ask: Callable[..., Result]) -> None:
    read: list[str] = []

    def some(deployment: Deployment) -> list[SideFigures]:
        read.append(deployment.environment)
        times = read.count(deployment.environment)
        if deployment.environment == "staging":
            raise UnreachableError("the API server is away", address="https://k8s")
        if deployment.environment == "production" and times == 2:
            raise KeyError("an answer that is none")
        if deployment.environment == "development" and times == 3:
            signal.raise_signal(signal.SIGINT)
        return well(deployment)

    done = ask(some, "--interval", "1ms")

    assert done.exit_code == ExitCode.OK
    blocks = done.stdout.strip().split("\n\n")
    assert all("staging: the API server is away" in block for block in blocks)
    latencies = [block.count("P95 latency: 0.5 s") for block in blocks]
    assert latencies[:2] == [2, 1]
    assert "production: it could not be read" in blocks[1]


def test_what_hangs_is_given_up_and_asked_no_second_time(ask: Callable[..., Result]) -> None:
    over, asked = threading.Event(), []

    def hangs(deployment: Deployment) -> list[SideFigures]:
        asked.append(deployment)
        over.wait()
        return []

    words = ("--set", "watch.probe_timeout=50ms", "--interval", "1ms", "--for", "150ms")
    done = ask(hangs, *words, "-e", "staging")
    over.set()

    assert "staging: no answer in 100ms" in done.stdout
    assert (done.exit_code, len(asked)) == (ExitCode.OK, 1)


def test_json_is_an_object_a_line_and_once_is_one(ask: Callable[..., Result]) -> None:
    done = ask(well, "--once", "--json", "-e", "staging")

    (line,) = done.stdout.splitlines()
    (model,) = json.loads(line)["models"]
    assert [side["environment"] for side in model["sides"]] == ["staging"]
    assert model["sides"][0]["figures"]["latency_p95"]["limit"] == 3
    ends = ask(well, "--json", "--interval", "1ms", "--for", "20ms")
    assert ends.exit_code == ExitCode.OK
    assert all(json.loads(line)["models"] for line in ends.stdout.splitlines())


def test_ctrl_c_before_anything_is_shown_is_130(ask: Callable[..., Result]) -> None:
    over = threading.Event()

    def hangs(_deployment: Deployment) -> list[SideFigures]:
        signal.raise_signal(signal.SIGINT)
        over.wait()
        return []

    done = ask(hangs, "--once", "--json", "-e", "staging")
    over.set()
    assert (done.exit_code, done.stdout) == (ExitCode.INTERRUPTED, "")


@pytest.mark.parametrize("words", [("--interval", "0s"), ("--for", "soon"), ("-e", "prod")])
def test_what_is_no_time_or_environment_is_a_usage_error(
    ask: Callable[..., Result], words: tuple[str, str]
) -> None:
    done = ask(well, *words)
    assert (done.exit_code, words[1] in done.stdout) == (ExitCode.USAGE, True)


def test_on_a_terminal_a_table_changes_in_place_within_its_height(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, height=12, color_system=None)
    monkeypatch.setattr(options, "console", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert ask(well, "--for", "20ms", "--interval", "5ms").exit_code == ExitCode.OK
    assert "P50 latency  0.5 s" in screen.getvalue()
    assert "lines more: make the terminal higher" in screen.getvalue()

    monkeypatch.setenv("CI", "true")
    screen.truncate(0)
    ask(well, "--once")
    assert "P50 latency: 0.5 s (Prometheus, 0s old)" in screen.getvalue()
