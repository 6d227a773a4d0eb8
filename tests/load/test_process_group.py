"""A process group is ended with everything in it, however its first process ended."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from vllm_rollout.load.process_group import ProcessGroup

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "exit_code"),
    [("time.sleep(60)", -9), ("sys.exit(3)", 3)],
    ids=["stubborn", "orphaning"],
)
def test_nothing_of_a_group_is_left(tmp_path: Path, then: str, exit_code: int) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", STUBBORN.format(then=then)]
    with ProcessGroup(command, env=os.environ, cwd=tmp_path, log=log) as group:
        while not log.read_text().endswith("\n"):
            group.wait(0.05)
        child = psutil.Process(int(log.read_text()))
        if exit_code == 3:
            assert group.wait(30)
            assert not group.running
        assert group.exit_code is None
    assert group.exit_code == exit_code
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive
