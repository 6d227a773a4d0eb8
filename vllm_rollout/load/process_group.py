"""A command and everything it starts, in a process group that always ends."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

_PATIENCE_SECONDS = 3.0
_LOOK_SECONDS = 0.05


class ProcessGroup:
    """Starts `command` in a group of its own, its output in the file `log`.

    Use it as a context manager: however the block is left, the group is ended. The first process
    is not reaped before that, so its number, which is the group's, cannot have become another's.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - no shell; the caller's own command
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._status = psutil.Process(self._process.pid).status

    @property
    def pid(self) -> int:
        """The first process's number, which is the group's."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True if the first process has not exited."""
        return self._process.returncode is None and self._status() != psutil.STATUS_ZOMBIE

    @property
    def exit_code(self) -> int | None:
        """The first process's exit code, negative for a signal; None before the group is ended."""
        return self._process.returncode

    def wait(self, seconds: float) -> bool:
        """Wait until the first process exits, `seconds` at most; return whether it has."""
        until = time.monotonic() + seconds
        while self.running:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def end(self) -> None:
        """End what is left of the group: SIGTERM while the first process runs, then SIGKILL."""
        if self._process.returncode is not None:
            return
        try:
            if self.running:
                self._signal(signal.SIGTERM)
                self.wait(_PATIENCE_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _signal(self, number: int) -> None:
        # A group of which only the zombie is left cannot be signalled on every system.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
