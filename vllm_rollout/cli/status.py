"""`vllm-rollout status`."""

from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from vllm_rollout.cli import options
from vllm_rollout.cli.console import show_table
from vllm_rollout.cli.top import FigureView, show_figures
from vllm_rollout.model.units import format_about, format_duration, format_value, of_total
from vllm_rollout.next_command import next_command
from vllm_rollout.report.live_figures import ModelFigures, figures_json
from vllm_rollout.rollout.model_status import (
    CanaryStatus,
    EnvironmentStatus,
    ModelStatus,
    model_status,
    models_known,
)

_COLUMNS = ("environment", "revision", "build", "on build", "ready", "restarts", "gates", "soak")


@options.about_releases
def status_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="default: every model known here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="show the metrics of what runs as well")
    ] = False,
    *,
    choice: options.Choice,
) -> None:
    """Show where MODEL stands: what runs in each environment, and what blocks its promotion."""
    settings = choice.settings()
    platform = settings.reader()
    if model is not None:
        settings.deployment(model, settings.policy.order[0])  # refuses what is no name
    found = [
        model_status(platform, settings.policy.for_model(name), name, datetime.now(UTC))
        for name in ([model] if model is not None else models_known(platform))
    ]
    models = [status.model for status in found]
    figures: list[ModelFigures] = []
    if metrics:
        with FigureView(settings, models) as view:
            figures = view.read()
    if as_json:
        data = TypeAdapter(list[ModelStatus]).dump_python(found, mode="json")
        for each, figure in zip(data, figures, strict=False):
            each["metrics"] = figures_json(figure)
        options.say_json(data)
        return
    if not found:
        options.say(
            "no rollout is known here: name a model, "
            + next_command("vllm-rollout", "status", "MODEL")
        )
    for status, figure in zip_longest(found, figures):
        _show(status)
        if figure is not None:
            show_figures(figure)


def _show(status: ModelStatus) -> None:
    table = Table(title=status.model, title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for each in status.environments:
        table.add_row(each.environment, *_cells(each))
    show_table(options.console, table)
    for each in status.environments:
        if each.revision is not None:
            options.say(f"{each.environment}: {each.url}")
            if each.registered is not None:
                options.say(f"{each.environment} in the model registry: {each.registered}")
            if each.canary is not None:
                options.say(f"{each.environment}, canary: {_canary(each.canary)}")
    for each in status.environments:
        if each.sign_off:
            options.say(f"{each.environment}: {each.sign_off}")
        if each.rolled_back:
            text = f"{each.environment}: {each.rolled_back}"
            options.console.print(escape(text), soft_wrap=True, highlight=False)
    for channel, lines in status.undelivered.items():
        for line in lines:
            options.say(f"a message to {channel} did not arrive: {line}")
    for each in status.environments:
        for block in each.blocks:
            text = f"{each.environment} cannot go on: {block}"
            options.console.print(escape(text), soft_wrap=True, highlight=False)


def _canary(status: CanaryStatus) -> str:
    share = (
        f"its share of the traffic is not known: {status.problem}"
        if status.problem
        else f"{format_value(status.share, 'ratio')} of the traffic"
    )
    if status.build is None:
        return f"{share}; it is not there"
    ready = sum(replica.ready for replica in status.replicas)
    build = status.build.short
    return f"{share}, build {build}, {of_total(ready, len(status.replicas), 'replica')} ready"


def _cells(status: EnvironmentStatus) -> list[str]:
    if status.revision is None or status.build is None:
        return ["not deployed"]
    left = timedelta(seconds=status.soak_left_seconds)
    so_far = format_duration(timedelta(seconds=int(status.soaked_seconds)))
    return [
        f"{status.revision} {status.revision_status}",
        status.build.short,
        f"{status.on_build}/{status.capacity}",
        f"{sum(r.ready for r in status.replicas)}/{len(status.replicas)}",
        str(sum(r.restarts for r in status.replicas)),
        "passed" if status.evidence else "–",
        f"{so_far}, {format_about(left)} left" if left else so_far,
    ]
