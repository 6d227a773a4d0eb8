"""What a command refuses, with what to do instead."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_rollout.cli.main import app
from vllm_rollout.model.errors import ExitCode


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["logs", "m", "-e", "production"], ["has no replica", "vllm-rollout status m"]),
        (["soak", "m", "-e", "production"], ["has no soak", "with -e: staging"]),
        (["soak", "m", "--every", "0s"], ["--every 0s"]),
        (["soak", "m", "--every", "5 parsecs"], ["--every 5 parsecs"]),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_remedy(
    words: list[str], says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    refused = CliRunner().invoke(app, [*words, "--platform", "local"])

    assert refused.exit_code == ExitCode.USAGE, refused.output
    printed = " ".join(refused.output.split())
    assert [text for text in says if text not in printed] == []
