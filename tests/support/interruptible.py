"""A command that a test interrupts."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Start a command that heeds SIGINT; where the test fails, it is killed.

    A test run that was itself started in the background would pass on that it is ignored.
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command], text=True, **(piped | options)
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
