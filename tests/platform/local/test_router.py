"""Streams through a real router: as they come, ended when the client goes, finished in a drain."""

import resource
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from support.local_release import LocalRelease, tiny, until

from vllm_rollout.platform.local import processes


def test_a_stream_is_finished_before_its_replica_leaves_or_cut_after_the_drain(
    release: LocalRelease, tmp_path: Path
) -> None:
    release.apply(tiny("a"))
    (old,) = release.rows
    with httpx.stream("GET", f"{release.url}/slow", timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: first"  # the server holds the rest back
        release.apply(tiny("b"))
        assert release.served(4) == {"b": 4}
        assert len(processes.carrying(old.id)) == 1
        httpx.get(f"{old.address}/release")
        assert [line for line in lines if line.startswith("data")] == ["data: last"]
    until(lambda: processes.carrying(old.id) == [])

    release.platform._drain = timedelta(seconds=0.2)
    with httpx.stream("GET", f"{release.url}/slow", timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: first"
        release.apply(tiny("c"))
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    log = tmp_path / "state" / "logs" / release.key / "router.log"
    assert "1 open requests are cut after 0.2 s (local.drain)" in log.read_text()


def test_a_router_short_of_descriptors_refuses_requests_and_lives(release: LocalRelease) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        release.apply(tiny("a"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert release.router is not None
    (serving,) = psutil.Process(release.router.pid).children()
    (row,) = release.rows
    assert resource.prlimit(serving.pid, resource.RLIMIT_NOFILE) == (hard, hard)

    resource.prlimit(serving.pid, resource.RLIMIT_NOFILE, (100, 100))
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=30))
        answers = [
            stack.enter_context(client.stream("GET", f"{release.url}/slow")) for _ in range(30)
        ]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [200] * 25 + [503] * 5
        assert "25 requests are open" in answers[-1].read().decode()
        httpx.get(f"{row.address}/release")
        assert {"data: last" in list(answer.iter_lines()) for answer in answers[:25]} == {True}
    until(lambda: httpx.post(release.url).status_code == 200)
    assert (serving.is_running(), release.rows) == (True, [row])


def test_a_client_that_goes_away_ends_its_request_at_the_replica(
    release: LocalRelease, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    release.apply(tiny("a", "--gone-file", str(gone)))
    with httpx.stream("GET", f"{release.url}/slow") as answer:
        assert next(answer.iter_lines()) == "data: first"
    until(gone.exists)
