"""`vllm-rollout deploy`, `logs` and `uninstall`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.ci import errors_reported_to_ci
from vllm_rollout.cli.console import LiveReporter
from vllm_rollout.cli.diagnose import show_findings
from vllm_rollout.cli.preflight import checked_before
from vllm_rollout.judge.diagnosis import findings_of
from vllm_rollout.model.deployment import Deployment, Target
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.units import counted
from vllm_rollout.next_command import next_command, promote_command
from vllm_rollout.platform.base import NotReadyError
from vllm_rollout.platform.progress import progress_shown
from vllm_rollout.platform.reader import ReleaseReader, at_home
from vllm_rollout.platform.writer import writer_of
from vllm_rollout.policy import Policy
from vllm_rollout.rollout.lease import hold
from vllm_rollout.rollout.lost_history import ensure_history
from vllm_rollout.rollout.model_registry import register
from vllm_rollout.rollout.run import SystemClock
from vllm_rollout.yaml_file import read_mapping


def _reach(
    choice: options.Choice, model: str, environment: str | None = None
) -> tuple[Policy, ReleaseReader, Deployment]:
    settings = choice.settings()
    deployment = settings.deployment(model, environment or settings.policy.order[0])
    return settings.policy.for_model(model), settings.reader(), deployment


@options.about_releases
@errors_reported_to_ci
def deploy_command(
    model: options.Model,
    values: Annotated[
        Path, typer.Option("--values", "-f", help="YAML file with what to serve and how")
    ],
    environment: options.Environment = None,
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
) -> None:
    """Deploy MODEL to the first environment, where rollouts begin.

    Every later environment is reached through gates: gate-and-promote MODEL --to ENVIRONMENT.
    """
    settings = choice.settings(report_dir=report_dir)
    order = settings.policy.order
    settings = settings.at_home(order[0])
    deployment = settings.deployment(model, environment or order[0])
    if deployment.environment != order[0]:
        raise UsageError(
            f"{deployment.environment} is not deployed to directly: stages are not skipped",
            remedy="Gate it first: " + promote_command(model, deployment.environment),
        )
    rules, where = settings.policy.for_model(model), writer_of(settings.reader())
    content = read_mapping(values)
    checked_before(settings, deployment, content, gate_options=choice.for_gates(settings))
    capacity = rules.environments[deployment.environment].replicas
    with hold(where.store, model, clock=SystemClock(), on_wait=options.say) as held:
        where.guard(held)
        if found := where.recover(deployment, timeout=rules.deploy_timeout):
            options.say(f"recovered {deployment}: {found}{held.whose}")
        ensure_history(where, deployment)
        build = where.build(deployment, content)
        target = Target(build=build, values=content, replicas=capacity, capacity=capacity)
        with LiveReporter(options.console) as reporter, progress_shown(reporter.progress):
            reporter.progress(f"deploying build {build.short} to {deployment}")
            try:
                revision = where.apply(
                    deployment,
                    target,
                    description=f"vllm-rollout deploy, build {build.short}",
                    timeout=rules.deploy_timeout,
                )
            except NotReadyError as error:
                show_findings(findings_of(error.symptoms, rules, deployment))
                raise
        if registered := register(rules, where, deployment, revision):
            options.say(f"registered {deployment}: {registered}")
    ready = sum(replica.ready for replica in where.replicas(deployment))
    options.console.print(
        f"{deployment}: revision {revision.number}, build {build.short}, "
        f"{counted(ready, 'replica')} ready at {where.route(deployment)}",
        soft_wrap=True,
        highlight=False,
    )


@options.about_releases
def logs_command(
    model: options.Model,
    environment: options.Environment = None,
    tail: Annotated[int, typer.Option("--tail", min=1, help="lines of each replica")] = 100,
    *,
    choice: options.Choice,
) -> None:
    """Print the last log lines of MODEL's replicas in --environment (default: the first)."""
    _, where, deployment = _reach(choice, model, environment)
    if not where.replicas(deployment):
        raise UsageError(
            f"{deployment} has no replica, and so no log",
            remedy="Where it is deployed is shown by: "
            + next_command("vllm-rollout", "status", model),
        )
    options.say(where.logs(deployment, tail=tail))


@options.about_releases
def uninstall_command(
    model: options.Model,
    environment: Annotated[
        str | None, options.environment_option("all but the last, if you agree")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    *,
    choice: options.Choice,
) -> None:
    """Remove MODEL's release from --environment (default: all but the last, if you agree).

    The last environment has users: only --environment removes from there.
    """
    rules, releases, deployment = _reach(choice, model, environment)
    *_, last = rules.order
    if environment:
        going = [deployment]
    else:
        every = [rules.deployment(model, name) for name in rules.environments]
        there = [each for each in every if at_home(releases, each.environment).history(each)]
        going = [each for each in there if each.environment != last]
        for each in there:
            how = "is removed" if each in going else f"stays, unless it is named: -e {last}"
            replicas = at_home(releases, each.environment).replicas(each)
            options.say(f"{each}: {counted(len(replicas), 'replica')}; it {how}")
        if going and not yes:
            _ask_to_remove(going)
        if not there:
            options.say(f"{model}: nothing was deployed")
    for target in going:
        where = writer_of(at_home(releases, target.environment))
        with hold(where.store, model, clock=SystemClock(), on_wait=options.say) as held:
            where.guard(held)
            found = bool(where.history(target))
            where.uninstall(target, timeout=rules.deploy_timeout)
        options.say(f"{target}: {'removed' if found else 'nothing was deployed'}")


def _ask_to_remove(going: Sequence[Deployment]) -> None:
    """Return if whoever runs this agrees.

    Raises:
        UsageError: they do not, or nobody can be asked.
    """
    try:
        agreed = typer.confirm(f"Remove {', '.join(map(str, going))}?")
    except typer.Abort:
        agreed = False
    if not agreed:
        raise UsageError(
            "nothing was removed", remedy="Add --yes, or name one environment: -e ENVIRONMENT."
        )
