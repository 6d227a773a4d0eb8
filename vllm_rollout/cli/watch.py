"""`vllm-rollout watch`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.console import LiveReporter
from vllm_rollout.cli.run_tools import new_run_tools, show_end
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.units import UnitError, parse_duration
from vllm_rollout.rollout.monitor import Monitor, StoppableClock
from vllm_rollout.rollout.run import SystemClock

_FOREVER = "forever"


@options.about_releases
def watch_command(
    model: options.Model,
    environment: options.LastEnvironment = None,
    for_: Annotated[
        str, typer.Option("--for", metavar="TIME", help="for example 24h; or forever")
    ] = _FOREVER,
    *,
    choice: options.Choice,
    report_dir: options.ReportDir = None,
    heartbeat: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="touched while observations are made, for a livenessProbe (default: none)",
        ),
    ] = None,
) -> None:
    """Stand watch over MODEL in --environment (default: the last), and roll back on a trigger.

    The policy's triggers, hours later as in the first minute. A rollout that is under way is left
    alone; of several watches over one deployment one leads. SIGTERM and Ctrl-C end it, and let a
    rollback that was begun come to its end. The chart rollout-watch runs it in the cluster.

    Exit codes: 0 the time is over or it was asked to end, and, with --for TIME, 3 nothing was
    observed, 5 rolled back, 6 rollback did not restore service: a person is needed.
    """
    settings = choice.settings(report_dir=report_dir)
    target = settings.deployment(model, environment or settings.policy.order[-1])
    try:
        duration = None if for_ == _FOREVER else parse_duration(for_)
    except UnitError as error:
        raise UsageError(f"--for {for_}: {error}", remedy="Write 24h, or forever.") from error
    stop = threading.Event()
    with LiveReporter(options.console) as reporter, options.ended_by_signals(stop):
        watch = Monitor(
            new_tools=lambda clock: new_run_tools(
                settings,
                source=target,
                target=target,
                gate_options=choice.for_gates(settings),
                reason="a trigger fired in the standing watch",
                reporter=reporter,
                clock=clock,
            ),
            on_end=show_end,
            clock=StoppableClock(SystemClock(), stop),
            heartbeat=heartbeat,
        )
        code = watch.run(duration)
    raise typer.Exit(int(code))
