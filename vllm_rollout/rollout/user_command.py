"""Runs commands of the team's own: an argv list, no shell, and never for longer than it may."""

import os
import signal
import subprocess
from collections.abc import Sequence

from vllm_rollout.model.errors import ExitCode, RolloutError
from vllm_rollout.platform.redact import redact, secrets_in


class UserCommandError(RolloutError):
    """The command could not be started, or did not end in time."""

    exit_code = ExitCode.UNREACHABLE


def run_user_command(
    words: Sequence[str], *, timeout_seconds: float, given: str = ""
) -> tuple[int, str]:
    """Run `words` with `given` as its input; its exit status and what it printed, redacted.

    Raises:
        OwnCommandError: it cannot be run, or was killed with all its children as time was up.
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
        except BaseException as error:  # time is up, or Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise UserCommandError(
                f"{words[0]!r} did not end within {timeout_seconds:g} s"
            ) from error
    return process.returncode, redact(printed.decode(errors="replace"), secrets_in()).strip()
