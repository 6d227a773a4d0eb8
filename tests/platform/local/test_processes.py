"""How a replica's process ended, as its parent tells it."""

import os
import signal
import sys
from pathlib import Path

import pytest

from vllm_rollout.platform.local import processes
from vllm_rollout.platform.local.processes import Identity, how_ended


def test_a_child_that_ends_while_asked_about_tells_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = processes.spawn(
        [sys.executable, "-c", "import signal; signal.pause()"], env={}, log=tmp_path / "log"
    )

    def ends_first(identity: Identity) -> None:
        os.kill(identity.pid, signal.SIGKILL)
        os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(processes, "_find", ends_first)
    seen = how_ended(child)
    if seen is None:
        ends_first(child)
        seen = how_ended(child)

    assert seen == "killed by signal 9"
