"""`gate-and-promote` and `vllm-rollout rollback`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.ci import errors_reported_to_ci
from vllm_rollout.cli.console import LiveReporter
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, UsageError
from vllm_rollout.next_command import next_command, words_of_promotion

if TYPE_CHECKING:
    from vllm_rollout.model.evidence import Evidence
    from vllm_rollout.rollout.leased_run import RunTools
    from vllm_rollout.rollout.run import Emergency
    from vllm_rollout.settings import Settings

Reason = Annotated[str, typer.Option("--reason", help="why, for the deployment record")]


@options.about_releases
@errors_reported_to_ci
def promote_command(
    model: options.Model,
    to: Annotated[
        str | None, typer.Option("--to", help="environment to promote to (default: the last)")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="run the gates, show what would be done, change nothing")
    ] = False,
    reason: Reason = options.NO_REASON,
    wait_for_window: Annotated[
        bool,
        typer.Option(
            "--wait-for-window", help="wait until a deployment window opens, then gate and promote"
        ),
    ] = False,
    emergency: Annotated[
        bool,
        typer.Option(
            "--emergency",
            help="skip soak, windows, on-call, pending sign-off and missing evidence of "
            "earlier stages; requires --reason and --as. The gates still must pass, a rejection "
            "stands, and production is watched",
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="promote a build that was rolled back from there; requires --reason. The gates "
            "still must pass",
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="with --emergency and --again: the name of who answers for it (default: with "
            "--again the account)",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            help="where the gated deployment is reached from here (default: the platform's way)",
        ),
    ] = None,
    gates: Annotated[
        list[Path] | None,
        typer.Option(
            "--gates", exists=True, help="file or folder with gates of your own; repeatable"
        ),
    ] = None,
    workers: options.Workers = None,
    load_in_cluster: options.LoadInCluster = False,
    verbose: options.Verbose = False,
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
) -> None:
    """Gate MODEL where it is, promote exactly what was gated, watch it, roll back on a trigger.

    By default the staging deployment is gated and production is promoted. Each run leaves
    report.html, junit.xml and evidence.json in reports/MODEL/RUN.

    Exit codes: 0 promoted (or nothing to do; or, with --plan, all gates passed and nothing else
    stands in the way), 1 a gate failed, 2 usage or policy error, 3 inconclusive or something to
    wait for (also with --plan), 4 something could not be reached, or promoted and kept though not
    all of it was seen: a person is needed, 5 promoted and rolled back, 6 rollback did not restore
    service, 130 interrupted.
    """
    from vllm_rollout.rollout.engine import gate_and_promote

    override = _emergency(emergency, name, reason, again=again)
    settings = choice.settings(base_url=base_url, report_dir=report_dir)
    target = settings.deployment(model, to or settings.policy.order[-1])
    before = settings.policy.previous(target.environment)
    if before is None:
        raise UsageError(
            f"nothing comes before {target.environment}",
            remedy="Deploy there directly: "
            + next_command("vllm-rollout", "deploy", model, "--values", "FILE"),
        )
    load = options.for_load(workers, in_cluster=load_in_cluster)
    named = {"--base-url": settings.base_url, "--report-dir": report_dir}
    further = [word for name, value in named.items() if value for word in (name, value)]
    further += [word for path in gates or [] for word in ("--gates", str(path))]
    with words_of_promotion(target.environment, [*further, *load]):
        _run(
            settings,
            source=settings.deployment(model, before),
            target=target,
            gate_options=[*choice.for_gates(settings), *load],
            own_gates=gates or [],
            reason=reason,
            work=lambda tools: gate_and_promote(
                tools, plan_only=plan, wait_for_window=wait_for_window
            ),
            emergency=override,
            again=((name or "").strip() or options.user_name()) if again else "",
            verbose=verbose,
        )


def _emergency(wanted: bool, name: str | None, reason: str, *, again: bool) -> "Emergency | None":
    from vllm_rollout.rollout.run import Emergency

    no_reason = reason == options.NO_REASON or not reason.strip()
    if again and no_reason:
        raise UsageError(
            "--again requires a reason", remedy="Add --reason TEXT; it is recorded with your name."
        )
    if not wanted:
        if name is not None and not again:
            raise UsageError(
                "--as goes with --emergency or --again", remedy="Leave it out, or add one."
            )
        return None
    if not (name or "").strip() or no_reason:
        raise UsageError(
            "--emergency requires a name and a reason",
            remedy="Add --as NAME and --reason TEXT; both are recorded with the override.",
        )
    return Emergency(by=str(name).strip(), reason=reason.strip())


@options.about_releases
@errors_reported_to_ci
def rollback_command(
    model: options.Model,
    environment: options.LastEnvironment = None,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            help="revision (default: the newest earlier one of another build with passing "
            "evidence)",
        ),
    ] = None,
    reason: Reason = "a manual rollback",
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
) -> None:
    """Return MODEL in --environment (default: the last) to an earlier revision, and verify it."""
    from vllm_rollout.rollout.engine import manual_rollback

    settings = choice.settings(report_dir=report_dir)
    target = settings.deployment(model, environment or settings.policy.order[-1])
    _run(
        settings,
        source=target,
        target=target,
        gate_options=choice.for_gates(settings),
        own_gates=[],
        reason=reason,
        work=lambda tools: manual_rollback(tools, to=to, reason=reason),
    )


def _run(
    settings: "Settings",
    *,
    source: Deployment,
    target: Deployment,
    gate_options: Sequence[str],
    own_gates: Sequence[Path],
    reason: str,
    work: "Callable[[RunTools], Evidence]",
    emergency: "Emergency | None" = None,
    again: str = "",
    verbose: bool = False,
) -> None:
    """Do `work`, then write its reports and record, and exit with its code."""
    from vllm_rollout.cli.run_tools import new_run_tools, show_end
    from vllm_rollout.rollout.leased_run import state_when_interrupted

    with LiveReporter(options.console) as reporter:
        tools = new_run_tools(
            settings,
            source=source,
            target=target,
            gate_options=gate_options,
            own_gates=own_gates,
            reason=reason,
            reporter=reporter,
            emergency=emergency,
            again=again,
        )
        try:
            evidence = work(tools)
            show_end(evidence, tools, verbose=verbose)
        except KeyboardInterrupt as error:  # another Ctrl-C, while the first one's report is made
            options.say(state_when_interrupted(tools.releases))
            raise typer.Exit(int(ExitCode.INTERRUPTED)) from error
    raise typer.Exit(evidence.exit_code or 0)
