"""Output of the command line: live on a terminal, plain lines everywhere else."""

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape

from vllm_rollout.judge import Outcome
from vllm_rollout.model.errors import RolloutError

if TYPE_CHECKING:
    from vllm_rollout.model.evidence import Step

_SECONDS_BETWEEN_PLAIN_LINES = 10.0
_STYLE = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.INCONCLUSIVE: "yellow"}
_WORD_STYLE = {"PASS": "green", "FAIL": "bold red", "INCONCLUSIVE": "yellow"}

_PLAIN_WIDTH = 140


def make_console() -> Console:
    """A console as wide as the terminal; wide enough for tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


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
