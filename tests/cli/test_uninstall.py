"""`vllm-rollout uninstall` names what goes, asks, and leaves users' environment unless named."""

from pathlib import Path

import pytest
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode

EVERYWHERE = {"production", "staging"}


@pytest.mark.parametrize(
    ("words", "typed", "code", "says", "left"),
    [
        ([], "y\n", ExitCode.OK, "Remove staging/m?", {"production"}),
        ([], "n\n", ExitCode.USAGE, "nothing was removed", EVERYWHERE),
        ([], "", ExitCode.USAGE, "Add --yes", EVERYWHERE),
        (["--yes"], "", ExitCode.OK, "production/m: 4 replicas; it stays", {"production"}),
        (["-e", "production"], "", ExitCode.OK, "production/m: removed", {"staging"}),
        (["-e", "development"], "", ExitCode.OK, "m: nothing was deployed", EVERYWHERE),
    ],
)
def test_what_goes_is_named_and_production_stays_unless_named(
    words: list[str],
    typed: str,
    code: ExitCode,
    says: str,
    left: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    clock = FakeClock()
    platform = SimulatedPlatform(MemoryStore(clock), clock)
    monkeypatch.setattr("vllm_rollout.settings.make_platform", lambda *_, **__: platform)
    for name, replicas in (("staging", 1), ("production", 4)):
        platform.deploy(Deployment("m", name), {"model": name}, replicas=replicas)

    ended = CliRunner().invoke(app, ["uninstall", "m", *words], input=typed)

    assert ended.exit_code == code, ended.output
    assert says in " ".join(ended.output.split())
    assert {name for name in EVERYWHERE if platform.history(Deployment("m", name))} == left
