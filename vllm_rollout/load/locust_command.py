"""The command by which Locust runs the suite's load: `python -m …locust_command OPTION …`."""

import os
import sys

from vllm_rollout.resources import LOADTESTS


def locust_command(*options: str) -> list[str]:
    """Locust with `loadtests/locustfile.py`, without its web page and its running tables."""
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOADTESTS / "locustfile.py")]
    command += ["--headless", "--only-summary"]
    # A failed request is a measurement, not an error of the generator's.
    command += ["--exit-code-on-error", "0"]
    return [*command, *options]


def main() -> None:
    """Become Locust, so that signals reach it and its exit code is this process's."""
    command = locust_command(*sys.argv[1:])
    os.execv(command[0], command)  # noqa: S606 - an argv list, no shell


if __name__ == "__main__":
    main()
