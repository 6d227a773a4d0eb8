"""The history command: every decision, and what was done to the chain afterwards."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vllm_rollout.cli.main import app
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.platform.writer import Store
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.settings import load_settings

MODEL = "llama-2-7b"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A local platform's store with two decisions, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    platform = load_settings(platform="local").reader()
    assert isinstance(platform, LocalPlatform)
    decisions = AuditLog(platform.store)
    for kind, who, environment in (
        (DecisionKind.PROMOTION, "alice", "production"),
        (DecisionKind.ROLLED_BACK, "bob [b]", "production"),
        (DecisionKind.REFUSAL, "carol", "staging"),
    ):
        decisions.append(
            kind,
            model=MODEL,
            environment=environment,
            at=datetime(2026, 11, 18, 10, tzinfo=UTC),
            who=who,
            why="P95 latency: 7 s",
        )
    return platform.store


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["history", MODEL, "--platform", "local", *words])


@pytest.mark.usefixtures("store")
def test_every_decision_is_shown_with_who_and_why() -> None:
    shown = run()

    assert shown.exit_code == 0, shown.output
    for words in ("promotion", "rolled-back", "alice", "bob [b]", "carol", "P95 latency"):
        assert words in shown.output
    assert "chain of 3 decisions is whole" in shown.output


@pytest.mark.usefixtures("store")
def test_one_environments_decisions_and_revisions_for_programs() -> None:
    found = json.loads(run("-e", "production", "--json").output)

    assert found["whole"] is True
    assert [each["who"] for each in found["decisions"]] == ["alice", "bob [b]"]
    assert all(each["digest"].startswith("sha256:") for each in found["decisions"])
    assert found["revisions"] == []


def test_a_changed_decision_is_named_and_the_exit_code_says_so(store: Store) -> None:
    key = f"decisions/{MODEL}/00000002"
    entry = store.read(key)
    assert entry is not None
    entry.value["decision"]["who"] = "nobody"
    store.write(key, entry.value, expect=entry.version)

    shown = run()
    found = json.loads(run("--json").output)

    assert shown.exit_code == 1
    assert "TAMPERED" in shown.output
    assert "whole" not in shown.output
    assert found["whole"] is False
    assert found["wrong"]
