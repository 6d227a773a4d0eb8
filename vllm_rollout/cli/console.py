"""Output of the command line: live on a terminal, plain lines everywhere else."""

import os
import re
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.text import HIDDEN, inert, printable, without_secrets

if TYPE_CHECKING:
    from vllm_rollout.model.evidence import Step

_SECONDS_BETWEEN_PLAIN_LINES = 10.0
_STYLE = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCONCLUSIVE: "yellow"}
_WORD_STYLE = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}

_PLAIN_WIDTH = 140
_HIDDEN = re.compile(rf"(?<!\\){re.escape(HIDDEN)}")
"""What stands for a secret, where rich would take it for a tag of its markup."""
_UNBOUNDED = Console(width=sys.maxsize).options


class _InertConsole(Console):
    """A console that shows text and passes on no instruction in it, whoever it is from.

    Everything that is printed is rendered here at last: messages, tables, progress.
    """

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich has it; without secrets, before a table cuts its cells into lines."""
        clean = without_secrets(text)
        if clean != text and how.get("markup") is not False:
            clean = _HIDDEN.sub(escape(HIDDEN), clean)
        return super().render_str(clean, **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with what a terminal or a CI system takes for an instruction shown as �."""
        segments = [
            each if each.control else each._replace(text=printable(each.text))
            for each in super().render(renderable, options)
        ]
        # Highlighting cuts lines to pieces, and a command may be in several of them.
        whole, start = inert("".join(each.text for each in segments if not each.control)), 0
        for each in segments:
            if each.control:
                yield each
            else:
                yield each._replace(text=whole[start : start + len(each.text)])
                start += len(each.text)


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal or COLUMNS; wide enough for text where there is neither."""
    console = _InertConsole(stderr=stderr)
    if console.is_terminal or columns_given():
        return console
    return _InertConsole(stderr=stderr, width=_PLAIN_WIDTH)


def columns_given() -> bool:
    """Return whether COLUMNS says how wide the output may be."""
    columns = os.environ.get("COLUMNS", "")
    return columns.isdigit() and int(columns) > 0


def show_table(console: Console, table: Table) -> None:
    """Print a table of figures; for a program that reads it, each row is one line.

    Where it is too wide, its lines give their room to its words before these are folded.
    """
    needed = console.measure(table, options=_UNBOUNDED).maximum
    if console.is_terminal or columns_given():
        if needed > console.width:
            table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, 0
        console.print(table)
        return
    before, console.width = console.width, needed
    console.print(table)
    console.width = before


def show_error(console: Console, error: RolloutError) -> None:
    """Print what was wrong and what to do next."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    if error.remedy:
        console.print(escape(error.remedy), highlight=False, soft_wrap=True)


class LiveReporter:
    """Shows a rollout's steps as lines and its progress as one changing line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._last_plain = 0.0

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def step(self, step: "Step") -> None:
        """Print a step, its outcome coloured."""
        style = _STYLE[step.outcome] if step.outcome else "default"
        self._line(f"{step.at:%H:%M:%S}  [{style}]{escape(step.title)}[/]")
        for line in step.detail.splitlines():
            self._line(f"          {escape(line)}")
        if self._status:
            self._status.update("")

    def gate(self, text: str) -> None:
        """Print how a gate ended."""
        for line in text.splitlines():
            word, space, rest = line.partition(" ")
            style = _WORD_STYLE.get(word, "default")
            self._line(f"          [{style}]{escape(word)}[/]{space}{escape(rest)}")

    def progress(self, text: str) -> None:
        """Show where long work stands."""
        if self._status:
            self._status.update(escape(text))
        elif time.monotonic() - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES:
            self._last_plain = time.monotonic()
            self._line(f"          {escape(text)}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
