"""Progress of long gates, where a reader sees it, and how they are ended from outside.

Under `gate-and-promote` each event is one JSON line in the file named by `VLLM_ROLLOUT_EVENTS`;
under plain pytest it is on the terminal.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from stat import S_ISFIFO
from typing import Any, Self

import pytest
from rich.console import Console
from rich.live import Live

from vllm_rollout.load.run_load import LoadProgress
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.pytest_plugin.gate_options import WITHOUT_VARIABLE
from vllm_rollout.report.terminal import progress_line, progress_lines
from vllm_rollout.variables import variable_of

TERMINAL = pytest.StashKey[int]()
EVENTS_VARIABLE = "VLLM_ROLLOUT_EVENTS"
LIFELINE_VARIABLE = "VLLM_ROLLOUT_LIFELINE"
_SECONDS_BETWEEN_LINES = 5.0
_STDOUT, _STDERR = 1, 2
_PARENT_GONE = signal.SIGUSR1
"""A signal that nobody else sends or has this process ignore."""
_END_SECONDS = 60.0


def emit(kind: str, **fields: Any) -> None:
    """Append an event for the parent process, if there is one that listens."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        line = json.dumps({"event": kind, **fields}, ensure_ascii=False)
        # A disk that fills up meanwhile takes the words, and not the gates.
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as events:
            events.write(line + "\n")


def check_variables() -> None:
    """Refuse variables of the suite that cannot be meant, before anything is run.

    Raises:
        UsageError: one is no file or pipe of a parent's, or of an option that has no variable.
    """
    if path := os.environ.get(EVENTS_VARIABLE):
        try:
            Path(path).open("a", encoding="utf-8").close()
        except OSError as error:
            raise pytest.UsageError(_left_over(EVENTS_VARIABLE, str(error))) from error
    if lifeline := os.environ.get(LIFELINE_VARIABLE):
        try:
            number = int(lifeline)
            is_pipe = number > _STDERR and S_ISFIFO(os.fstat(number).st_mode)
        except (ValueError, OverflowError, OSError):
            is_pipe = False
        if not is_pipe:
            raise pytest.UsageError(_left_over(LIFELINE_VARIABLE, f"{lifeline!r} is no pipe"))
    for option in WITHOUT_VARIABLE:
        if os.environ.get(variable_of(option)):
            raise pytest.UsageError(f"{variable_of(option)} is not read: write --{option}")


def _left_over(variable: str, problem: str) -> str:
    return f"{variable}: {problem}.\nUnset it: a rollout sets it for the gate runs that it starts."


def end_with_parent() -> None:
    """Interrupt this process when the parent that listens to its events is gone.

    The parent holds the other end of the pipe named by `VLLM_ROLLOUT_LIFELINE` and never writes
    to it: when it dies, however it dies, reading ends. Gates of a rollout that nobody conducts
    must not go on making load, also where SIGINT and SIGTERM are ignored, as in the background.
    """
    lifeline = os.environ.pop(LIFELINE_VARIABLE, None)
    if not lifeline:
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt("the end of the rollout that started it")

    def wait() -> None:
        while os.read(int(lifeline), 1):
            pass
        os.kill(os.getpid(), _PARENT_GONE)
        time.sleep(_END_SECONDS)
        os._exit(pytest.ExitCode.INTERRUPTED)

    signal.signal(_PARENT_GONE, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [_PARENT_GONE])
    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def end_by_signals(config: pytest.Config) -> None:
    """Have SIGTERM and SIGHUP end the session as Ctrl-C does, with its report."""
    if hasattr(config, "workerinput") or threading.current_thread() is not threading.main_thread():
        return
    both = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _: object) -> None:
        for each in both:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for each in both:
        if signal.getsignal(each) is signal.SIG_DFL:  # one that is ignored stays so: `nohup`
            signal.signal(each, end)
            config.add_cleanup(partial(_restore, each))


def _restore(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)


class WaitingLine:
    """Says every few seconds that a gate still waits for answers, while its body runs."""

    def __init__(self, config: pytest.Config, title: str) -> None:
        self._title = title
        self._terminal = config.stash.get(TERMINAL, None)
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._say, name="waiting line", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _say(self) -> None:
        waited = 0.0
        while not self._over.wait(_SECONDS_BETWEEN_LINES):
            waited += _SECONDS_BETWEEN_LINES
            line = f"{self._title}: waiting for answers, {waited:g} s"
            emit("progress", text=line)
            if EVENTS_VARIABLE not in os.environ and self._terminal is not None:
                with suppress(OSError):
                    os.write(self._terminal, f"\n{line}\n".encode())


def keep_terminal(config: pytest.Config) -> None:
    """Keep standard output open beside pytest's capturing, for lines in the middle of a test."""
    if hasattr(config, "workerinput"):
        return
    with suppress(OSError):
        terminal = os.dup(sys.__stdout__.fileno() if sys.__stdout__ else _STDOUT)
        config.stash[TERMINAL] = terminal
        config.add_cleanup(partial(os.close, terminal))


class Progress:
    """Shows the progress of one deployment's load run, with bounds at `confidence`.

    A listening parent gets each update; on a terminal a few lines change in place; elsewhere there
    is a plain line every few seconds.
    """

    def __init__(self, config: pytest.Config, deployment: Deployment, confidence: float) -> None:
        self._config = config
        self._title = f"load {deployment}"
        self._confidence = confidence
        self._last = -_SECONDS_BETWEEN_LINES
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            # After a SIGHUP there is no terminal, and why it ended matters more.
            with suppress(OSError), self._uncaptured():
                self._live.stop()

    def load(self, progress: LoadProgress) -> None:
        """Show where the load run stands."""
        line = f"{self._title}: {progress_line(progress, confidence=self._confidence)}"
        emit("progress", text=line)
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if EVENTS_VARIABLE in os.environ or terminal is None:
            return
        if terminal.isatty:
            self._draw(progress)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            with self._uncaptured():
                terminal.ensure_newline()
                terminal.write_line(line)

    def notice(self, text: str) -> None:
        """Say something about the load run that has to be seen."""
        line = f"{self._title}: {text}"
        emit("notice", text=line)
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if EVENTS_VARIABLE not in os.environ and terminal is not None:
            with self._uncaptured():
                terminal.ensure_newline()
                terminal.write_line(line)

    def _draw(self, progress: LoadProgress) -> None:
        with self._uncaptured():
            if self._live is None:
                sys.stdout.write("\n")
                # pytest captures output, and takes it badly if somebody else does so too.
                self._live = Live(
                    console=Console(),
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
            table = progress_lines(progress, self._title, confidence=self._confidence)
            self._live.update(table, refresh=True)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()
