"""`vllm-rollout preflight`, and the same checks before `vllm-rollout deploy`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_rollout import __version__
from vllm_rollout.cli import options
from vllm_rollout.cli.ci import tell_ci_of_checks
from vllm_rollout.cli.console import LiveReporter
from vllm_rollout.cli.run_tools import tidy_reports
from vllm_rollout.model.deployment import Deployment, newest_served
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.evidence import Evidence, new_run_id
from vllm_rollout.report.render import write_reports
from vllm_rollout.rollout.gates import GateRunner, run_preflight
from vllm_rollout.rollout.run import refusal_of
from vllm_rollout.settings import Settings
from vllm_rollout.yaml_file import read_mapping


@options.about_releases
def preflight_command(
    model: options.Model,
    environment: options.LastEnvironment = None,
    values: Annotated[
        Path | None,
        typer.Option(
            "--values",
            "-f",
            help="values of the build (default: what the environment before runs)",
        ),
    ] = None,
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
) -> None:
    """Check what a build of MODEL needs in --environment (default: the last), changing nothing.

    Chart, values, namespace, room for GPUs, quotas, image, model access, volumes: each with what
    was found and what to do. gate-and-promote and deploy make the same checks by themselves.

    Exit codes: 0 all there, 1 something is missing, 3 something could not be known, 4 something
    could not be reached.
    """
    settings = choice.settings(report_dir=report_dir)
    deployment = settings.deployment(model, environment or settings.policy.order[-1])
    content = read_mapping(values) if values else _values_before(settings, deployment)
    if not checked_before(settings, deployment, content, gate_options=choice.for_gates(settings)):
        options.say(f"{deployment}: nothing is checked beforehand on this platform, by policy")


def checked_before(
    settings: Settings,
    deployment: Deployment,
    values: Mapping[str, Any],
    *,
    gate_options: list[str],
) -> bool:
    """Make the pre-deployment checks, show them and write their report; whether there were any.

    Raises:
        typer.Exit: they did not pass.
    """
    started = datetime.now(UTC)
    run_id = new_run_id(started)
    folder = settings.report_dir / deployment.model / run_id
    with LiveReporter(options.console) as reporter:
        run = run_preflight(
            GateRunner(
                options=gate_options,
                on_event=lambda kind, text: reporter.gate(text) if kind == "gate" else None,
            ),
            settings.reader(),
            settings.policy.for_model(deployment.model),
            deployment,
            values,
            folder / "preflight",
        )
    if run is None:
        return False
    evidence = Evidence(
        run_id=run_id,
        model=deployment.model,
        suite_version=__version__,
        started=started,
        finished=datetime.now(UTC),
        runs=(run,),
    )
    report = write_reports(evidence, folder)
    options.say(f"report: {report.html}")
    policy = settings.policy.for_model(deployment.model)
    tidy_reports(folder.parent, settings.reader(), policy, deployment.model)
    if refusal := refusal_of(run):
        options.say(refusal.conclusion)
        tell_ci_of_checks(evidence, int(refusal.code), report)
        raise typer.Exit(int(refusal.code))
    return True


def _values_before(settings: Settings, deployment: Deployment) -> dict[str, Any]:
    """The values that the environment before runs now."""
    platform = settings.reader()
    before = settings.policy.previous(deployment.environment)
    source = settings.deployment(deployment.model, before) if before else None
    served = newest_served(platform.history(source)) if source else None
    if source is None or served is None:
        raise UsageError(
            f"which build would come to {deployment} is unknown",
            remedy="Name its values: --values FILE.",
        )
    return platform.values(source, served.number)
