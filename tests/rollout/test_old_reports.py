"""Old reports go, and those that somebody goes by stay."""

from pathlib import Path
from typing import Any

import pytest
from support.simulated import WEDNESDAY, FakeClock, MemoryStore, SimulatedPlatform

from vllm_rollout.cli.run_tools import tidy_reports
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.policy import Override, load_policy
from vllm_rollout.rollout.audit_log import AuditLog, DecisionKind
from vllm_rollout.rollout.old_reports import remove_old_reports

RUNS = [f"20261101-12000{number}-00a{number}" for number in range(8)]


@pytest.fixture
def platform() -> SimulatedPlatform:
    clock = FakeClock()
    return SimulatedPlatform(MemoryStore(clock), clock)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    for name in (*RUNS, "my-notes"):
        (folder / name).mkdir(parents=True)
        (folder / name / "evidence.json").write_text("{}")
    (folder / "20261101-120000-00aa").write_text("a file")
    return folder


def decide(platform: SimulatedPlatform, kind: DecisionKind, run_id: str, **about: Any) -> None:
    """Append a decision of a run to the audit log."""
    about = {"environment": "staging", "at": WEDNESDAY, "who": "a", "why": ""} | about
    AuditLog(platform.store).append(kind, model="m", run_id=run_id, **about)


def test_the_oldest_go_but_none_that_is_signed_or_serves(
    platform: SimulatedPlatform, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = platform.deploy(Deployment("m", "production"), {"build": "one"})
    serves = platform.deploy(Deployment("m", "production"), {"build": "two"})
    decide(platform, DecisionKind.SIGN_OFF, RUNS[0])
    decide(platform, DecisionKind.PROMOTED, RUNS[1], build=gone.digest)
    decide(platform, DecisionKind.PROMOTED, RUNS[2], build=serves.digest)
    policy = load_policy(None, overrides={"keep_reports": Override(3, "--set")})

    tidy_reports(folder, platform, policy, "m")

    left = {each.name for each in folder.iterdir()}
    assert left == {RUNS[0], RUNS[2], *RUNS[-3:], "my-notes", "20261101-120000-00aa"}
    said = " ".join(capsys.readouterr().out.split())
    assert f"removed the reports of 3 old runs from {folder}, {RUNS[1]} to {RUNS[4]}" in said
    assert "`keep_reports` is 3" in said
    listed = (folder.parent / "index.html").read_text(encoding="utf-8")
    assert (RUNS[1] in listed, RUNS[2] in listed) == (False, True)
    tidy_reports(folder, platform, load_policy(None), "m")
    off = load_policy(None, overrides={"keep_reports": Override(False, "--set")})
    assert remove_old_reports(folder, platform, off, "m") == []
    assert capsys.readouterr().out == ""


def test_nothing_goes_where_the_decisions_are_not_whole(
    platform: SimulatedPlatform, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decide(platform, DecisionKind.SIGN_OFF, RUNS[0])
    decide(platform, DecisionKind.SIGN_OFF, RUNS[1])
    key = "decisions/m/00000001"
    del platform.store.entries[key]
    policy = load_policy(None, overrides={"keep_reports": Override(1, "--set")})

    with pytest.raises(RolloutError, match="not whole"):
        remove_old_reports(folder, platform, policy, "m")
    tidy_reports(folder, platform, policy, "m")

    assert set(RUNS) <= {each.name for each in folder.iterdir()}
    assert "old reports stay" in capsys.readouterr().out
