"""Runs a command only while its parent is alive and holds the lease.

    python -I -S lease_supervisor.py PIPE COMMAND [ARGUMENT …]

The owner writes into the pipe, a line at a time, until when the command may run: seconds of the
clock `ELAPSED`. When the owner is gone (the pipe ends) the command is asked to end (SIGTERM, which
lets Helm mark its release failed) and killed if it does not. When the time is over, because the
owner is frozen, the command is killed at once: someone else may be at work by then. The exit code
is the command's own, 75 (EX_TEMPFAIL) where it was not begun.

A program of its own with the standard library alone, so that it starts in milliseconds.
"""

import os
import select
import signal
import subprocess
import sys
import time

# A machine that was suspended has let the time pass.
ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
NOT_BEGUN = 75
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0


def main(pipe: int, command: list[str]) -> int:
    """Run `command` until it ends or may not go on; its exit code."""
    until = _heard(pipe, 0.0)
    if until is None or time.clock_gettime(ELAPSED) >= until:
        return NOT_BEGUN
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    child = subprocess.Popen(command)  # noqa: S603 - the owner's own argv, no shell
    while child.poll() is None:
        while asked:
            child.send_signal(asked.pop())
        if select.select([pipe], [], [], _POLL_SECONDS)[0]:
            heard = _heard(pipe, until)
            if heard is None:
                return _end(child)
            until = heard
        if time.clock_gettime(ELAPSED) >= until:
            child.kill()
    return _code(child.wait())


def _heard(pipe: int, before: float) -> float | None:
    """Return the newest time received, `before` if none was; None when the owner is gone."""
    text = os.read(pipe, 65536)
    lines = text.decode().splitlines()
    return (float(lines[-1]) if lines else before) if text else None


def _end(child: "subprocess.Popen[bytes]") -> int:
    child.terminate()
    try:
        return _code(child.wait(_GRACE_SECONDS))
    except subprocess.TimeoutExpired:
        child.kill()
        return _code(child.wait())


def _code(status: int) -> int:
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
