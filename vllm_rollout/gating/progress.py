"""Progress of long gates, where a reader sees it.

Under `gate-and-promote` each event is one JSON line in the file named by `VLLM_ROLLOUT_EVENTS`;
under plain pytest it is a line on the terminal, at most one every few seconds.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_rollout.deployment import Deployment
from vllm_rollout.observe.load_run import LoadProgress
from vllm_rollout.report.terminal import progress_line

EVENTS_VARIABLE = "VLLM_ROLLOUT_EVENTS"
LIFELINE_VARIABLE = "VLLM_ROLLOUT_LIFELINE"
_SECONDS_BETWEEN_LINES = 5.0


def emit(kind: str, **fields: Any) -> None:
    """Append an event for the parent process, if there is one that listens."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        line = json.dumps({"event": kind, **fields}, ensure_ascii=False)
        with Path(path).open("a", encoding="utf-8") as events:
            events.write(line + "\n")


def end_with_parent() -> None:
    """Interrupt this process when the parent that listens to its events is gone.

    The parent holds the other end of the pipe named by `VLLM_ROLLOUT_LIFELINE` and never writes
    to it: when it dies, however it dies, reading ends. Gates of a rollout that nobody conducts
    must not go on making load.
    """
    lifeline = os.environ.pop(LIFELINE_VARIABLE, None)
    if lifeline is None:
        return

    def wait() -> None:
        while os.read(int(lifeline), 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


class Progress:
    """Shows the progress of one deployment's load run."""

    def __init__(self, config: pytest.Config, deployment: Deployment) -> None:
        self._config = config
        self._deployment = deployment
        self._last = -_SECONDS_BETWEEN_LINES

    def load(self, progress: LoadProgress) -> None:
        """Show where the load run stands."""
        text = f"load {self._deployment}: {progress_line(progress)}"
        emit("progress", text=text)
        if EVENTS_VARIABLE in os.environ or time.monotonic() - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = time.monotonic()
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if terminal is not None and capture is not None:
            with capture.global_and_fixture_disabled():
                terminal.ensure_newline()
                terminal.write_line(text)
