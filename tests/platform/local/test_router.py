"""Streams through a real router: as they come, ended when the client goes, finished in a drain."""

from pathlib import Path

import httpx
from support.local_release import LocalRelease, tiny, until

from vllm_rollout.platform.local import processes


def test_a_stream_arrives_as_it_is_made_and_is_finished_before_its_replica_leaves(
    release: LocalRelease,
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


def test_a_client_that_goes_away_ends_its_request_at_the_replica(
    release: LocalRelease, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    release.apply(tiny("a", "--gone-file", str(gone)))
    with httpx.stream("GET", f"{release.url}/slow") as answer:
        assert next(answer.iter_lines()) == "data: first"
    until(gone.exists)
