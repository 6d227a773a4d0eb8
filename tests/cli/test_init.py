"""`vllm-rollout init` writes a policy that loads, and overwrites nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vllm_rollout.cli.main import app
from vllm_rollout.judge.rate import requests_needed
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.policy import load_policy


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str, answers: str = "") -> Result:
    return CliRunner().invoke(app, ["init", *words], input=answers)


@pytest.mark.parametrize(("platform", "rate"), [("kubernetes", "10/s"), ("local", "0.3/s")])
def test_what_it_writes_loads_and_its_load_can_decide_its_limits(platform: str, rate: str) -> None:
    words = ("--yes", "--platform", platform, "--rate", rate, "--replicas", "1")
    written = init(*words)
    assert written.exit_code == 0, written.output
    policy = load_policy()
    assert policy.platform == platform
    for name in ("staging", "production"):
        load = policy.environments[name].load
        assert load.rate * load.duration.total_seconds() >= requests_needed(0.001, 0.95, 2)


def test_it_asks_and_asks_again(folder: Path) -> None:
    asked = init("ours.yaml", "--namespace", "models", answers="\nten\n20/s\n6\nMars\nUTC\n")
    assert asked.exit_code == 0, asked.output
    assert "ten" in asked.output
    assert "'Mars' is not a time zone" in asked.output
    policy = load_policy(folder / "ours.yaml")
    assert (policy.namespace, policy.environments["production"].replicas) == ("models", 6)
    assert not (folder / "rollout.yaml").exists()


def test_it_never_overwrites(folder: Path) -> None:
    (folder / "rollout.yaml").write_text("namespace: mine\n")
    refused = init("--yes")
    assert refused.exit_code == ExitCode.USAGE
    assert "rollout.yaml is there already" in refused.output
    assert (folder / "rollout.yaml").read_text() == "namespace: mine\n"


@pytest.mark.parametrize("words", [(), ("--yes", "--rate", "10"), ("--yes", "--replicas", "4 }")])
def test_nothing_is_written_of_no_answer_or_a_wrong_one(words: tuple[str, ...]) -> None:
    refused = init(*words)
    assert refused.exit_code == ExitCode.USAGE, refused.output
    assert not Path("rollout.yaml").exists()
