"""What a command refuses, with what to do instead."""

import errno
import os
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from support.ci_jobs import commands, github_job, given_outputs, told
from support.world import passing_evidence
from typer.testing import CliRunner

from vllm_rollout.cli import options, preflight
from vllm_rollout.cli.main import app
from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.report.html import summary_html
from vllm_rollout.rollout.evidence_store import store_evidence
from vllm_rollout.settings import load_settings


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


@pytest.mark.parametrize(
    "words",
    [
        ["gate-and-promote", "m", "--set", "confidence=200%"],
        ["gate-and-promote", "m", "--to", "nowhere"],
        ["gate-and-promote", "m"],  # nothing is deployed
        ["rollback", "m", "--to", "7"],
        ["deploy", "m", "--values", "none.yaml"],
    ],
)
def test_a_ci_is_told_of_a_refusal_before_any_gate(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    github_job(monkeypatch, tmp_path)

    refused = CliRunner().invoke(app, [*words, "--platform", "local"])

    assert refused.exit_code == ExitCode.USAGE, refused.output
    (_, end) = told(tmp_path)
    assert "(exit code 2): " in end
    assert given_outputs(tmp_path / "outputs")["exit-code"] == "2"
    ((kind, _, text),) = commands(refused.output)
    assert kind == "error"
    assert text


def test_a_ci_is_told_of_checks_before_a_deployment_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    github_job(monkeypatch, tmp_path)
    (run,) = gated(ExitCode.OK).runs
    unasked = replace(run, expected=("preflight-image",), gates=())
    monkeypatch.setattr(preflight, "run_preflight", lambda *_: unasked)

    with pytest.raises(typer.Exit):
        preflight.checked_before(
            load_settings(platform="local"), run.deployment, {}, gate_options=[]
        )

    title, end = told(tmp_path)
    assert (title, end[:17]) == ("### m: staging gates INCONCLUSIVE", "**INCONCLUSIVE** ")
    given = given_outputs(tmp_path / "outputs")
    assert (given["verdict"], given["exit-code"]) == ("inconclusive", "3")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_disk_and_a_read_only_folder_get_one_sentence(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, named in (("reports/x", "reports/x cannot"), (None, "a file of this run cannot")):
        with pytest.raises(typer.Exit) as ended, options.errors_shown():
            raise OSError(number, os.strerror(number), path)
        assert ended.value.exit_code == ExitCode.UNREACHABLE
        said = " ".join(capsys.readouterr().out.split())
        assert f"{named} be written: {os.strerror(number)}" in said
        assert "Make room there, or name another folder with --report-dir." in said


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    @options.about_releases
    def command(*, choice: options.Choice) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(typer.Exit) as ended:
            command(**dict.fromkeys(("policy", "changes", "platform", "namespace", "kube_context")))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.exit_code == ExitCode.INTERRUPTED
    assert "interrupted; nothing more was changed" in capsys.readouterr().out


def test_evidence_of_a_run_that_was_rolled_back_is_not_signed_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = gated(ExitCode.ROLLED_BACK)
    reader = load_settings(platform="local").reader()
    store_evidence(writer_of(reader).store, ended)

    words = ["sign-off", "m", "--evidence", ended.digest, "--as", "Ada", "--platform", "local"]
    refused = CliRunner().invoke(app, words)

    assert refused.exit_code == ExitCode.USAGE
    assert "its run ended with exit code 5: a trigger fired" in " ".join(refused.output.split())
    assert "--as NAME" not in summary_html(ended)
    assert "cannot be signed off" in summary_html(ended)
    assert "--as NAME" in summary_html(gated(ExitCode.INCONCLUSIVE))


def gated(code: ExitCode) -> Evidence:
    """Staging passed all of its gates, and the run ended so."""
    return passing_evidence(
        Deployment("m", "staging"),
        datetime.now(UTC),
        build=Build(values_digest="sha256:1"),
        conclusion="a trigger fired",
        exit_code=int(code),
    )
