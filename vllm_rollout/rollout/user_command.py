"""Runs the team's own commands: an argv list, no shell, with a timeout."""

import os
import signal
import subprocess
from collections.abc import Sequence

from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.model.text import redact


class UserCommandError(RolloutError):
    """The command could not be started, or did not end in time."""

    exit_code = ExitCode.UNREACHABLE


def run_user_command(
    words: Sequence[str], *, timeout_seconds: float, given: str = ""
) -> tuple[int, str]:
    """Run `words` with `given` as input; return the exit status and the output, redacted.

    Raises:
        UserCommandError: it cannot be run, or timed out and was killed with all its children.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - an argv list, no shell
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise UserCommandError(f"{words[0]!r} cannot be run: {error.strerror}") from error
    with process:
        try:
            printed, _ = process.communicate(given.encode(), timeout=timeout_seconds)
        except BaseException as error:  # timeout, or Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise UserCommandError(
                f"{words[0]!r} did not end within {timeout_seconds:g} s"
            ) from error
    return process.returncode, redact(printed.decode(errors="replace")).strip()
