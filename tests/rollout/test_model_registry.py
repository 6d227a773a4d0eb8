"""The model registry is told by the team's own commands, and what they say is believed."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.world import MODEL, PRODUCTION, World

from vllm_rollout.model.deployment import Revision
from vllm_rollout.model.errors import ExitCode, PolicyError
from vllm_rollout.policy import Policy, load_policy
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.model_registry import RegistryError, register, registered
from vllm_rollout.rollout.model_status import model_status

Script = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A Python script; gives its path."""

    def script(text: str) -> str:
        path = tmp_path / "admin-cli"
        path.write_text(f"#!{sys.executable}\nimport sys\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return script


def policy_with(**commands: object) -> Policy:
    return load_policy(None, overrides={f"model_registry.{k}": v for k, v in commands.items()})


def serving(world: World) -> Revision:
    return world.platform.history(PRODUCTION)[-1]


def test_placeholders_are_filled_in_and_the_last_line_is_kept(world: World, script: Script) -> None:
    command = script("print('asking'); print(*sys.argv[1:])")
    words = [command, "--model={model}", "{environment}", "{url}", "{revision}", "{{as is}}"]
    policy = policy_with(register_command=words, status_command=words)
    expected = f"--model={MODEL} production http://{PRODUCTION.release} 1 {{as is}}"
    revision = serving(world)
    assert register(policy, world.platform, PRODUCTION, revision) == expected
    assert registered(policy, world.platform, PRODUCTION, revision) == expected
    off = policy_with()
    assert register(off, world.platform, PRODUCTION, revision) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sys.exit('no such model')", "ended with 1: no such model"),
        ("import time; time.sleep(60)", "did not end within 0.5 s"),
        ("print('token=hf_abcdefghijklmnop'); sys.exit(3)", "ended with 3: token=["),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
    ],
)
def test_a_command_that_fails_registered_nothing(
    world: World, script: Script, text: str, said: str
) -> None:
    policy = policy_with(register_command=[script(text)], timeout="500ms")
    with pytest.raises(RegistryError) as caught:
        register(policy, world.platform, PRODUCTION, serving(world))
    assert said in str(caught.value)
    assert "hf_" not in str(caught.value)
    missing = policy_with(register_command=["/nowhere/admin-cli"])
    with pytest.raises(RegistryError, match="cannot be run"):
        register(missing, world.platform, PRODUCTION, serving(world))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["admin-cli", "{modell}"], "names {modell}"),
        (["{model}"], "must be written out"),
        (["admin-cli", "{"], "write {{ and }} for braces"),
        ([], "must not be empty"),
    ],
)
def test_a_command_that_cannot_be_filled_in_is_a_policy_error(words: list[str], said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_with(register_command=words)
    assert said in str(caught.value)


def test_production_is_registered_before_its_gates(world: World, script: Script) -> None:
    log = world.tmp_path / "registered"
    command = script(f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')")
    gated: list[str] = []
    world.gates.during = lambda deployment: gated.append(
        f"{deployment.environment} {log.read_text() if log.exists() else ''}".strip()
    )
    world.overrides |= {"model_registry.register_command": [command, "{environment}", "{revision}"]}
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    assert gated == ["staging", "production production 4"]


def test_what_is_not_registered_is_rolled_back_and_the_old_build_registered_again(
    world: World, script: Script
) -> None:
    command = script("print('revision', sys.argv[1]); sys.exit(sys.argv[1] == '4')")
    world.overrides |= {"model_registry.register_command": [command, "{revision}"]}
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "not registered" in evidence.conclusion
    assert "revision 4" in evidence.conclusion
    assert any(step.detail == "revision 5" for step in evidence.steps)


def test_a_rollback_is_no_failure_because_the_registry_is_away(
    world: World, script: Script
) -> None:
    command = script("sys.exit('away')")
    world.overrides |= {"model_registry.register_command": [command]}
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert any("is not registered" in step.title for step in evidence.steps)


def test_status_shows_what_the_registry_says_or_that_it_is_unknown(
    world: World, script: Script
) -> None:
    def told(command: str) -> str | None:
        policy = policy_with(status_command=[command, "{environment}"])
        found = model_status(world.platform, policy, MODEL, world.clock.now())
        return found.environments[-1].registered

    assert told(script("print('ready in', sys.argv[1])")) == "ready in production"
    assert (told("/nowhere/admin-cli") or "").startswith("unknown: ")
