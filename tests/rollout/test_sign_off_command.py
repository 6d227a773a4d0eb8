"""The sign-off command: by name, by a key here or of ssh-keygen, by the CI's token."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import signing
from support.simulated import WEDNESDAY
from support.world import MODEL, SIGN_OFF, STAGING, World
from typer.testing import CliRunner, Result

from vllm_rollout.cli import options
from vllm_rollout.cli.main import app
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.rollout.audit_log import AuditLogReader
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.identity import PURPOSE
from vllm_rollout.rollout.sign_offs import sign_off_of
from vllm_rollout.rollout.ssh_signature import sign
from vllm_rollout.settings import Settings

Ask = Callable[..., Result]
OIDC = {
    "issuer": signing.ISSUER, "audience": "vllm-rollout", "subjects": [signing.SUBJECT],
    "jwks": "jwks.json", "token_env": "CI_TOKEN",
}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "name": {},
    "key": {"identity": "key", "keys": {"Grace of QA": signing.public_line("grace")}},
    "oidc": {"identity": "oidc", "oidc": OIDC},
}


@pytest.fixture
def asking(
    new_world: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Ask, Callable[[], str]]]:
    """A world in which evidence waits for a sign-off of that kind: the command, and by whose it
    may go on."""

    def ask_for(kind: str) -> tuple[Ask, Callable[[], str]]:
        world = new_world()
        world.clock.wall = datetime.now(UTC) - WEDNESDAY - timedelta(hours=1)
        world.overrides[SIGN_OFF] = {"valid": "48h", **RULES[kind]}
        digest = gate_and_promote(world.tools()).digest
        policy = world.tools().run.policy
        settings = Settings(
            policy=policy, platform=world.platform, base_url=None, report_dir=Path("reports")
        )
        monkeypatch.setattr(options.Choice, "settings", lambda _self: settings)

        def ask(*words: str) -> Result:
            return CliRunner().invoke(app, ["sign-off", MODEL, "--evidence", digest, *words])

        def by_whose() -> str:
            store, revision = world.platform.store, world.platform.history(STAGING)[-1]
            decisions, now = AuditLogReader(store).whole(MODEL), datetime.now(UTC)
            by, _ = sign_off_of(store, decisions, policy, STAGING, revision, now)
            return str(by or "").partition(",")[0]

        return ask, by_whose

    return ask_for


def refused(result: Result, said: str) -> None:
    assert result.exit_code == ExitCode.USAGE, result.output
    assert said in " ".join(result.output.split())


def test_a_key_signs_here_or_by_ssh_keygen(asking: Any, tmp_path: Path) -> None:
    ask, by_whose = asking("key")
    key, statement = tmp_path / "key", tmp_path / "statement"
    key.write_bytes(signing.private_file("mallory"))
    refused(ask("--key", str(key)), "which the policy does not name")
    refused(ask("--as", "Grace of QA"), "asks for the signature of a key")
    statement.write_text(ask("--statement").output)
    refused(ask("--signed", str(statement)), "statement.sig cannot be read")
    signature = sign(signing.private_file("grace"), statement.read_bytes(), PURPOSE)
    Path(f"{statement}.sig").write_text(signature)
    refused(ask("--signed", str(statement), "--reject"), "is not the statement of this decision")
    refused(ask("--signed", str(statement), "--as", "Ada"), "the signature is by Grace of QA")
    assert by_whose() == ""

    done = ask("--signed", str(statement))
    assert done.exit_code == 0, done.output
    assert by_whose().startswith("signed off by Grace of QA (key SHA256:")
    refused(ask("--signed", str(statement)), "it is a replay")
    key.write_bytes(signing.private_file("grace"))
    assert ask("--key", str(key), "--reject").exit_code == 0
    assert by_whose() == ""
    assert ask("--key", str(key), "--note", "after all").exit_code == 0
    assert by_whose().startswith("signed off by Grace of QA (key SHA256:")


def test_a_token_of_the_ci_signs(
    asking: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, by_whose = asking("oidc")
    signing.jwks(tmp_path)
    refused(ask(), "the CI's token is missing: the environment variable CI_TOKEN is not set")
    wanted = ask("--statement").output.strip()
    assert wanted.startswith(f"vllm-rollout/approve/{MODEL}/staging/sha256:")
    token = signing.token(wanted, datetime.now(UTC))
    monkeypatch.setenv("CI_TOKEN", token)
    refused(ask("--reject"), "its token is not for this decision")
    done = ask()
    assert done.exit_code == 0, done.output
    assert token not in done.output
    assert by_whose() == f"signed off by grace (token of {signing.SUBJECT})"
    for words in (["status", MODEL, "--json"], ["history", MODEL, "--json"]):
        told = CliRunner().invoke(app, words)
        assert told.exit_code == 0, told.output
        assert (
            f"grace (as {signing.SUBJECT})" in told.output or "signed off by grace" in told.output
        )
        assert token not in told.output


def test_a_name_is_the_default_and_is_called_one(asking: Any) -> None:
    ask, by_whose = asking("name")
    refused(ask(), "--as is empty")
    refused(ask("--statement"), "the policy asks for no signature")
    refused(ask("--key", "key", "--as", "Ada"), "no key signs here")
    assert ask("--as", "Ada").exit_code == 0
    assert by_whose() == "signed off by Ada (name alone)"
