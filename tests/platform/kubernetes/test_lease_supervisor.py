"""A supervised command ends with its owner's right to run it, whatever happens to the owner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.local_release import until

from vllm_rollout.model.errors import DeployError
from vllm_rollout.platform.kubernetes.command import run


class Guarding:
    """A guard as a test sets it."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.refuses = False
        self.since = time.monotonic()

    def ensure(self) -> None:
        if self.refuses:
            raise DeployError("the lease was lost")

    def seconds_left(self) -> float:
        return max(0.0, self.since + self.seconds - time.monotonic())


# Writes what becomes of it: its process id, and `asked` when it is asked to end.
COMMAND = """
import signal, sys, time
def asked(*_):
    open(sys.argv[1], "a").write("asked\\n")
    sys.exit(3)
signal.signal(signal.SIGTERM, asked)
import os
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
time.sleep(600)
"""
OWNER = f"""
import sys, time
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
from test_lease_supervisor import COMMAND, Guarding
from vllm_rollout.platform.kubernetes.command import run
guard = Guarding(float(sys.argv[2]))
try:
    run(sys.executable, ["-c", COMMAND, sys.argv[1]], timeout_seconds=600, where="", guard=guard)
except BaseException as error:
    open(sys.argv[1], "a").write(f"owner: {{type(error).__name__}}\\n")
"""


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


def lines(told: Path) -> list[str]:
    return told.read_text().splitlines() if told.exists() else []


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def owner(told: Path, *, seconds: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER, str(told), str(seconds)])


def test_output_and_failure_are_the_commands_own() -> None:
    hello = ["-c", "print('hello')"]
    said = run(sys.executable, hello, timeout_seconds=60, where="", guard=Guarding())
    assert said == "hello\n"
    with pytest.raises(DeployError, match="something broke"):
        run(
            sys.executable,
            ["-c", "import sys; sys.exit('Error: something broke')"],
            timeout_seconds=60,
            where="",
            guard=Guarding(),
        )


def refusing(guard: Guarding) -> None:
    guard.refuses = True


def out_of_time(guard: Guarding) -> None:
    guard.seconds = 0.0


@pytest.mark.parametrize("lost", [refusing, out_of_time])
def test_nothing_is_begun_without_the_lease(told: Path, lost: Callable[[Guarding], None]) -> None:
    guard = Guarding()
    lost(guard)
    with pytest.raises(DeployError):
        run(sys.executable, ["-c", COMMAND, str(told)], timeout_seconds=60, where="", guard=guard)
    assert lines(told) == []


def test_a_command_whose_owner_is_killed_is_asked_to_end(told: Path) -> None:
    with owner(told, seconds=600) as process:
        until(lambda: len(lines(told)) == 1)
        process.kill()
    until(lambda: gone(int(lines(told)[0])))
    assert lines(told)[1:] == ["asked"]


def test_a_command_whose_owner_is_frozen_is_killed_when_the_lease_runs_out(told: Path) -> None:
    with owner(told, seconds=5) as process:
        until(lambda: len(lines(told)) == 1 or process.poll() is not None)
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: gone(int(lines(told)[0])), within_seconds=60)
        os.kill(process.pid, signal.SIGCONT)
    assert lines(told)[1:] == ["owner: DeployError"]


def test_a_command_that_takes_too_long_is_ended_in_order(told: Path) -> None:
    with pytest.raises(DeployError, match="did not return within"):
        run(
            sys.executable,
            ["-c", COMMAND, str(told)],
            timeout_seconds=3,
            where="",
            guard=Guarding(),
        )
    assert lines(told)[1:] in ([], ["asked"])
    assert all(gone(int(line)) for line in lines(told)[:1])
