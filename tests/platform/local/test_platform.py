"""A release's life on one machine: install, ramp, roll back, fail, go."""

import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from support.local_release import LocalRelease, tiny, until

from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.model.errors import DeployError, UsageError
from vllm_rollout.platform.local import processes

MINUTE = timedelta(minutes=1)
SHORT = timedelta(seconds=5)


def test_a_ramp_shifts_traffic_by_replicas_loses_no_request_and_rolls_back(
    release: LocalRelease,
) -> None:
    platform, deployment = release.platform, release.deployment
    installed = release.apply(tiny("a"), 4, 4)
    assert (installed.number, installed.status) == (1, RevisionStatus.DEPLOYED)
    assert release.served(8) == {"a": 8}
    url, old_pids = release.url, release.pids()

    with release.clients() as lost:
        one = release.apply(tiny("b"), 1, 4)
    assert not one.complete
    assert release.served(40) == {"a": 30, "b": 10}
    assert len(release.pids() & old_pids) == 3

    with release.clients() as lost_at_half:
        release.apply(tiny("b"), 2, 4)
        half_pids = release.pids()
        whole = release.apply(tiny("b"), 4, 4)
    assert whole.complete
    assert release.served(40) == {"b": 40}
    assert len(release.pids() & half_pids) == 2

    with release.clients() as lost_in_rollback:
        back = platform.rollback(
            deployment, 2, description="p95 too high", timeout=timedelta(seconds=40)
        )
    assert (back.number, back.replicas, back.build) == (5, 1, one.build)
    assert back.description == "p95 too high"
    assert release.served(40) == {"a": 30, "b": 10}

    assert [*lost, *lost_at_half, *lost_in_rollback] == []
    assert release.url == url
    assert release.statuses == [*["superseded"] * 4, "deployed"]
    assert platform.values(deployment, 1)["command"] == tiny("a")["command"]
    replicas = platform.replicas(deployment)
    assert {(each.phase, each.ready, each.restarts) for each in replicas} == {("Running", True, 0)}
    assert Counter(each.build for each in replicas) == {
        installed.build.digest: 3,
        one.build.digest: 1,
    }


def test_a_build_that_crashes_is_reported_with_its_last_words_and_the_old_one_serves(
    release: LocalRelease,
) -> None:
    release.apply(tiny("a"), 2, 2)
    before = release.pids()
    with (
        release.clients() as lost,
        pytest.raises(DeployError, match="CrashLoopBackOff exited with code 3, 1 restart") as told,
    ):
        release.apply(tiny("b", "--crash"), 1, 2)

    assert "out of memory, says the tiny server" in str(told.value)
    assert "Revision 1 serves as before." in str(told.value)
    assert lost == []
    assert release.statuses == ["deployed", "failed"]
    assert release.pids() == before


def test_a_first_build_that_crashes_leaves_no_process(release: LocalRelease) -> None:
    with pytest.raises(DeployError, match="nothing serves now"):
        release.apply(tiny("a", "--crash"))
    assert release.statuses == ["failed"]
    until(lambda: release.router is None)
    assert release.rows == []


def test_a_revision_that_is_not_ready_in_time_fails_and_the_old_one_serves(
    release: LocalRelease,
) -> None:
    release.apply(tiny("a"))
    with pytest.raises(DeployError, match="revision 2 is not ready after 0:00:01"):
        release.apply(tiny("b", "--never-ready"), within_seconds=1)
    assert release.statuses == ["deployed", "failed"]
    assert release.served(4) == {"a": 4}
    assert [each.ready for each in release.platform.replicas(release.deployment)] == [True]


def test_a_replica_that_dies_is_started_again_until_it_is_given_up(release: LocalRelease) -> None:
    release.apply(tiny("a"))

    def now() -> list[tuple[bool, str, int]]:
        replicas = release.platform.replicas(release.deployment)
        return [(each.ready, each.phase, each.restarts) for each in replicas]

    assert httpx.post(f"{release.url}/crash").status_code == 502
    until(lambda: now() == [(True, "Running", 1)])
    assert release.served(1) == {"a": 1}

    assert httpx.post(f"{release.url}/crash").status_code == 502
    until(lambda: now() == [(False, "Failed", 1)])
    assert release.platform.replicas(release.deployment)[0].reason == "CrashLoopBackOff"
    assert httpx.post(f"{release.url}/v1/completions").status_code == 503

    # A new revision is a new chance, even of the same build.
    assert release.apply(tiny("a")).number == 2
    assert release.served(1) == {"a": 1}
    assert now() == [(True, "Running", 0)]


def test_uninstall_leaves_no_process_no_port_and_no_history_but_the_documents(
    release: LocalRelease,
) -> None:
    platform, deployment = release.platform, release.deployment
    release.apply(tiny("a", "--fork"), 2, 2)
    platform.store.write("evidence/1", {"ok": True}, expect=None)
    url, router, ids = release.url, release.router, [row.id for row in release.rows]
    until(lambda: len(release.carried()) == 4)

    platform.uninstall(deployment, timeout=SHORT)

    assert [processes.carrying(each) for each in ids] == [[], []]
    assert not processes.is_running(router)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert platform.history(deployment) == []
    assert platform.replicas(deployment) == []
    assert platform.store.keys("evidence/") == ["evidence/1"]
    with pytest.raises(UsageError, match="no release llama-2-7b-staging") as told:
        platform.base_url(deployment)
    assert "vllm-rollout status llama-2-7b" in told.value.remedy
    platform.uninstall(deployment, timeout=SHORT)


def test_two_state_directories_do_not_touch_each_other(
    make_release: Callable[[Path], LocalRelease], tmp_path: Path
) -> None:
    here, there = make_release(tmp_path / "here"), make_release(tmp_path / "there")
    here.apply(tiny("a"))
    there.apply(tiny("b"))
    assert here.url != there.url

    here.platform.stop_all()

    assert (here.router, here.carried()) == (None, [])
    assert there.served(2) == {"b": 2}
    port = int(here.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        found = here.platform.recover(here.deployment, timeout=MINUTE)
        assert "revision 1 does not serve yet" in found
        assert f"its port {port} of 127.0.0.1 cannot be had, process {os.getpid()} (" in found
        assert "Traceback" not in found
    assert here.platform.recover(here.deployment, timeout=MINUTE).endswith("revision 1 serves")
    assert here.served(2) == {"a": 2}


def test_only_the_build_that_was_gated_is_applied(release: LocalRelease) -> None:
    target = release.target(tiny("a"))
    gated = replace(target, build=replace(target.build, values_digest="sha256:0"))
    with pytest.raises(UsageError, match="values_digest: sha256:0 ->"):
        release.platform.apply(release.deployment, gated, description="", timeout=SHORT)
    with pytest.raises(UsageError, match="no revision 3"):
        release.platform.rollback(release.deployment, 3, description="", timeout=SHORT)
    assert release.statuses == []


def test_secrets_reach_the_replica_and_nothing_else(
    release: LocalRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"secrets": ["TINY_API_KEY"]}
    monkeypatch.delenv("TINY_API_KEY", raising=False)
    with pytest.raises(UsageError, match="TINY_API_KEY"):
        release.apply(tiny("a", **secrets))

    monkeypatch.setenv("TINY_API_KEY", "first-s3cret")
    monkeypatch.setenv("OTHER_TOKEN", "not-for-replicas")
    release.apply(tiny("a", **secrets))
    assert "key [redacted]" in release.platform.logs(release.deployment)
    (pid,) = release.pids()
    assert psutil.Process(pid).environ()["TINY_API_KEY"] == "first-s3cret"
    assert "OTHER_TOKEN" not in psutil.Process(pid).environ()
    # Read by another process: closing the file in this one would drop SQLite's locks on it.
    files = list((tmp_path / "state").glob("state.db*"))
    assert b"s3cret" not in subprocess.run(["cat", *files], capture_output=True, check=True).stdout

    # A new value reaches new replicas: the router hands over to one that has it.
    monkeypatch.setenv("TINY_API_KEY", "second-s3cret")
    release.apply(tiny("b", **secrets), 1, 2)
    assert pid in release.pids()
    (new_pid,) = release.pids() - {pid}
    assert psutil.Process(new_pid).environ()["TINY_API_KEY"] == "second-s3cret"

    # Where the value is not known nothing can be struck out, so nothing is shown.
    monkeypatch.delenv("TINY_API_KEY")
    router = release.router
    assert router is not None
    os.kill(router.pid, signal.SIGKILL)
    until(lambda: not processes.is_running(router))
    assert "withheld" in release.platform.logs(release.deployment)
    assert "s3cret" not in release.platform.logs(release.deployment)
