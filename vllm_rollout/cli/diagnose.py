"""`vllm-rollout diagnose`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from vllm_rollout.cli import options
from vllm_rollout.judge.diagnosis import Finding, findings_of
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.text import one_line
from vllm_rollout.model.units import counted


@options.about_releases
def diagnose_command(
    model: options.Model,
    environment: options.Environment = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
    *,
    choice: options.Choice,
) -> None:
    """Say why replicas of MODEL are not ready, and what to do about it.

    In --environment, or in the first. Ends with 0 if all are ready, with 1 if one is not or there
    is none.
    """
    settings = choice.settings()
    policy = settings.policy.for_model(model)
    deployment = settings.deployment(model, environment or policy.order[0])
    symptoms = settings.reader().symptoms(deployment)
    findings = findings_of(symptoms, policy, deployment)
    replicas = sum(each.replica is not None and not each.job for each in symptoms)
    if as_json:
        document = {
            "deployment": asdict(deployment),
            "replicas": replicas,
            "findings": [asdict(finding) for finding in findings],
        }
        options.say_json(document)
    elif not symptoms:
        options.console.print(f"{deployment}: there is no replica", soft_wrap=True)
    elif not findings:
        options.console.print(
            f"{deployment}: {counted(replicas, 'replica')}, all ready", soft_wrap=True
        )
    if not as_json:
        show_findings(findings)
    if findings or not symptoms:
        raise typer.Exit(ExitCode.GATE_FAILED)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print each finding: whose, its cause, what shows it, and what to do."""
    for finding in findings:
        _show(finding)


def _show(finding: Finding) -> None:
    options.console.print(
        f"[bold]{escape(one_line(finding.replica))}[/]: {escape(one_line(finding.cause))}",
        soft_wrap=True,
        highlight=False,
    )
    lines = "\n".join(one_line(line) for line in finding.shown_by)
    options.console.print(Padding(Text(lines, style="dim"), (0, 0, 0, 2)), soft_wrap=True)
    options.console.print(f"  → {escape(finding.resolution)}", soft_wrap=True, highlight=False)
