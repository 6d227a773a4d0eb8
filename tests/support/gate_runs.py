"""The gates as a user runs them: pytest in an empty folder, and the evidence it leaves."""

import os
import subprocess
import sys
from pathlib import Path

from support.forked import pytest_in

from vllm_rollout.judge import Outcome
from vllm_rollout.model.evidence import Evidence, read_evidence

MODEL = "llama-2-7b"
# Others may hold the CPU while tests run: only a test of that asks how late requests left.
SHORT = (
    "load.rate=100/s",
    "load.duration=2s",
    "load.warmup=0s",
    "load.max_tokens=2",
    "load.max_lag=1m",
)
ONE_IN_FIFTY = (
    "gates.error_rate.limit=2%",
    "gates.load_capacity.expected_rate=90/s",
    "gates.load_capacity.unserved=2%",
)
FAST = {"ttft_seconds": "0.005", "inter_token_seconds": "0.001"}


def run_gates(
    tmp_path: Path, *arguments: str, changes: tuple[str, ...] = (*SHORT, *ONE_IN_FIFTY)
) -> "subprocess.CompletedProcess[str]":
    """Run pytest in an empty folder, `changes` made to staging's policy."""
    return pytest_in(tmp_path, _options(arguments, changes))


def started_gates(
    tmp_path: Path, *arguments: str, changes: tuple[str, ...] = (*SHORT, *ONE_IN_FIFTY)
) -> "subprocess.CompletedProcess[str]":
    """The same by a new interpreter, as a user's shell starts it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *_options(arguments, changes)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def _options(arguments: tuple[str, ...], changes: tuple[str, ...]) -> list[str]:
    # Hypothesis, which users do not have, takes longer to import than most gates take.
    options = [*arguments, "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-rA"]
    for change in changes:
        options += ["--policy-set", f"environments.staging.{change}"]
    return options


def staging(url: str) -> tuple[str, ...]:
    """The gates of staging at a server, and a report."""
    return ("-m", "staging", "--model", MODEL, "--base-url", url)


def unreported(url: str) -> tuple[str, ...]:
    """The same, and evidence without a report."""
    return (*staging(url), "--evidence", "evidence.json")


def evidence_in(tmp_path: Path, model: str = MODEL) -> Evidence:
    """What such a run left."""
    (file,) = (*tmp_path.glob(f"reports/{model}/*/evidence.json"), *tmp_path.glob("evidence.json"))
    return read_evidence(file)


def outcomes(evidence: Evidence) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for gate in evidence.runs[0].gates:
        found.setdefault(gate.gate, gate.outcome)
    return found
