"""`vllm-rollout top`, and the figures that `vllm-rollout status --metrics` shows."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Self

import typer

from vllm_rollout.cli import options
from vllm_rollout.cli.console import columns_given
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import ExitCode, RolloutError, UsageError
from vllm_rollout.model.live_figures import SideFigures
from vllm_rollout.model.text import all_printable
from vllm_rollout.model.units import UnitError, counted, format_duration, parse_duration
from vllm_rollout.next_command import next_command
from vllm_rollout.observe.bounded_question import BoundedQuestion
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.report.figure_words import limits_of
from vllm_rollout.report.live_figures import (
    ModelFigures,
    figures_json,
    figures_lines,
    figures_table,
)
from vllm_rollout.rollout.model_status import models_known
from vllm_rollout.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

_FOREVER = "forever"
_NOT_DEPLOYED = "nothing is deployed here"
_TICK_SECONDS = 0.05
"""How soon Ctrl-C ends what waits for answers."""


class FigureView:
    """The figures of models as they are now; a source that fails leaves the others.

    Each deployment is asked in a thread of its own, and given up after a while, until it answers.
    """

    def __init__(
        self, settings: Settings, models: Sequence[str], environment: str | None = None
    ) -> None:
        self._policy, self._models = settings.policy, models
        environments = [environment] if environment else settings.policy.order
        watch = settings.policy.watch
        self._patience = timedelta(seconds=2 * watch.probe_timeout_seconds)
        self._window = settings.policy.triggers.window
        self._questions: dict[Deployment, BoundedQuestion[list[SideFigures] | str]] = {}
        self._live: dict[Deployment, LiveFigures] = {}
        for model in models:
            rules = settings.policy.for_model(model)
            for name in environments:
                deployment = settings.deployment(model, name)
                self._live[deployment] = LiveFigures(rules, settings.reader())
                self._questions[deployment] = BoundedQuestion(partial(self._ask, deployment))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for deployment, live in self._live.items():
            if not self._questions[deployment].open:
                live.close()

    def _ask(self, deployment: Deployment) -> list[SideFigures] | str:
        try:
            return self._live[deployment].read(
                deployment, window=self._window, now=datetime.now(UTC)
            )
        except (RolloutError, OSError) as error:
            return str(error)

    def read(self, stop: threading.Event | None = None) -> list[ModelFigures]:
        """Return the figures of each model; none of them once `stop` is set."""
        for question in self._questions.values():
            question.start()
        until = time.monotonic() + self._patience.total_seconds()
        while any(question.open for question in self._questions.values()):
            if stop is not None and stop.is_set():
                return []
            if time.monotonic() >= until:
                break
            time.sleep(_TICK_SECONDS)
        now = datetime.now(UTC)
        return [self._of(model, now) for model in self._models]

    def _of(self, model: str, now: datetime) -> ModelFigures:
        sides: list[SideFigures] = []
        problems: dict[str, str] = {}
        rules = self._policy.for_model(model)
        for deployment, question in self._questions.items():
            if deployment.model != model:
                continue
            answer = question.answer()
            if answer is None:
                late = f"no answer in {format_duration(self._patience)}"
                answer = late if question.open else "it could not be read"
            if isinstance(answer, str):
                problems[deployment.environment] = answer
            elif not answer:
                problems[deployment.environment] = _NOT_DEPLOYED
            else:
                sides += answer
        limits = {name: limits_of(rules, name) for name in rules.order}
        return ModelFigures(model=model, at=now, sides=sides, limits=limits, problems=problems)


@options.about_releases
def top_command(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="default: every model known here")
    ] = None,
    environment: Annotated[str | None, options.environment_option("all")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, an object a line, for programs")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="show the figures once, and end")] = False,
    interval: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="time between readings (default: watch.interval)"),
    ] = None,
    for_: Annotated[
        str, typer.Option("--for", metavar="TIME", help="for example 10m; or forever")
    ] = _FOREVER,
    *,
    choice: options.Choice,
) -> None:
    """Show MODEL's metrics as it runs, per environment, revision and side of a ramp.

    On a terminal one table that changes, elsewhere a block of lines for each reading. Each figure
    is shown with its source and age, and with the policy's limit where there is one; what is not
    known says why. Rates and percentiles by Prometheus are those of the policy's triggers.window,
    those by the servers' own /metrics of the time since they were read before.

    Exit codes: 0 the time is over, or Ctrl-C or SIGTERM ended it, 130 before anything was shown.
    """
    pause = None if interval is None else _duration("--interval", interval, "5s")
    lasts = None if for_ == _FOREVER else _duration("--for", for_, "10m, or forever")
    settings = choice.settings()
    models = [model] if model is not None else models_known(settings.reader())
    if not models:
        raise UsageError(
            "no rollout is known here",
            remedy="Name a model: " + next_command("vllm-rollout", "top", "MODEL"),
        )
    seconds = (pause or settings.policy.watch.interval).total_seconds()
    until = None if lasts is None else time.monotonic() + lasts.total_seconds()
    stop = threading.Event()
    shown = 0
    with (
        FigureView(settings, models, environment) as view,
        options.ended_by_signals(stop),
        _screen(as_json=as_json, once=once) as show,
    ):
        while not stop.is_set() and (found := view.read(stop)):
            show(found)
            shown += 1
            left = seconds if until is None else min(seconds, until - time.monotonic())
            if once or left <= 0:
                break
            _sleep(left, stop)
    if not shown:
        raise typer.Exit(int(ExitCode.INTERRUPTED))


def show_figures(found: ModelFigures, *, plain: bool = False) -> None:
    """Print the figures of a model: a table on a terminal, else or where `plain` lines."""
    console = options.console
    limited = console.is_terminal or columns_given()
    if limited and not plain:
        console.print(figures_table(found, width=console.width), highlight=False)
        return
    for line in figures_lines(found, width=console.width if limited else None):
        options.say(line)


_Show = Callable[[Sequence[ModelFigures]], None]


@contextmanager
def _screen(*, as_json: bool, once: bool) -> Iterator[_Show]:
    """Yield what shows a reading: as JSON, as lines, or on a terminal as what changes there."""
    console = options.console
    live = console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")

    def in_json(found: Sequence[ModelFigures]) -> None:
        data = {
            "at": datetime.now(UTC).isoformat(),
            "models": [figures_json(each) for each in found],
        }
        typer.echo(json.dumps(all_printable(data)))

    def in_print(found: Sequence[ModelFigures]) -> None:
        for each in found:
            show_figures(each, plain=not live)
        if not once:
            options.say("")

    if as_json or once or not live:
        yield in_json if as_json else in_print
        return
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as screen:
        yield lambda found: screen.update(_cut_to_height(found), refresh=True)


def _cut_to_height(found: Sequence[ModelFigures]) -> "RenderableType":
    """Return the tables, without what the terminal has no room for."""
    from rich.console import Group
    from rich.segment import SegmentLines
    from rich.text import Text

    console = options.console
    whole = Group(*(figures_table(each, width=console.width) for each in found))
    lines = console.render_lines(whole, pad=False)
    room = max(1, console.height - 2)
    if len(lines) <= room:
        return whole
    note = f"{counted(len(lines) - room, 'line')} more: make the terminal higher, or name one "
    note += "MODEL and -e ENVIRONMENT"
    return Group(SegmentLines(lines[:room], new_lines=True), Text(note, "dim", no_wrap=True))


def _duration(option: str, text: str, example: str) -> timedelta:
    try:
        found = parse_duration(text)
    except UnitError as error:
        raise UsageError(f"{option} {text}: {error}", remedy=f"Write {example}.") from error
    if not found:
        raise UsageError(f"{option} {text}: it has to be above 0", remedy=f"Write {example}.")
    return found


def _sleep(seconds: float, stop: threading.Event) -> None:
    """Sleep, and not for longer once `stop` is set.

    It is never waited for: a signal that sets it may come while its lock is held.
    """
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _TICK_SECONDS))
