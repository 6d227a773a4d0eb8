"""A pytest run in a process of its own, forked from the test's: its imports are done."""

import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_PATIENCE_SECONDS = 180.0


def pytest_in(folder: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run pytest in `folder` without the environment of this test run; what it printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:

        def run() -> int:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            sys.stdout = sys.stderr = printed
            for name in [n for n in os.environ if n.startswith(("VLLM_", "PYTEST_"))]:
                del os.environ[name]
            os.chdir(folder)
            warnings.resetwarnings()  # how strict this test run is
            try:
                return int(pytest.main(list(arguments)))
            finally:
                printed.flush()

        def report(text: str) -> None:
            printed.write(text)
            printed.flush()

        status = _wait(forked(run, report))
        printed.seek(0)
        return subprocess.CompletedProcess(["pytest", *arguments], status, printed.read(), "")


def forked(run: Callable[[], int], report: Callable[[str], object]) -> int:
    """Do `run` in a fork and return its process id; `report` gets the traceback, if any."""
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads; the child uses nothing of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = run()
    except BaseException:  # noqa: BLE001 - the fork must not go on into the test
        report(traceback.format_exc())
    finally:
        os._exit(status)


def _wait(pid: int) -> int:
    """The exit code, negative for a signal."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise TimeoutError(f"pytest did not end within {_PATIENCE_SECONDS:g} s")
        time.sleep(0.02)
