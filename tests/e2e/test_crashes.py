"""SIGKILL and SIGSTOP at journal writes and changes, on the local platform.

Once for each kind of call; at every one of them in `make test-exhaustive`. What comes right after
one call comes right before the next: each cell is both.
"""

import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from support.local_release import tiny
from support.real_runs import BAD, GOOD, GOOD_BY_TRAFFIC, Run, Runs, Stop, When, cells
from support.world import MODEL, PRODUCTION

from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.platform.local import LocalPlatform
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.journal import Journal

pytestmark = pytest.mark.long


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    def connect() -> LocalPlatform:
        return LocalPlatform(
            tmp_path / "state", startup_timeout=timedelta(seconds=60), max_restarts=1
        )

    yield Runs(connect, PRODUCTION, lambda version: tiny(str(version)), tmp_path)
    connect().stop_all(timeout=timedelta(seconds=3))


def serving(runs: Runs) -> str:
    """The build that all of production runs; everything is at rest."""
    platform = runs.connect()
    entry = Journal(platform.store, MODEL).read()
    assert entry is not None
    assert not entry.unfinished
    assert AuditLog(platform.store).verify(MODEL) == []
    history = platform.history(PRODUCTION)
    assert [r.status for r in history].count(RevisionStatus.DEPLOYED) == 1
    assert RevisionStatus.PENDING not in [r.status for r in history]
    assert platform.weights(PRODUCTION).canary_share == 0
    assert platform.history(PRODUCTION.canary) == []
    replicas = platform.replicas(PRODUCTION)
    assert [replica.ready for replica in replicas] == [True, True]
    (build,) = {replica.build for replica in replicas}
    made_of = {platform.build(PRODUCTION, runs.values(n)).digest: str(n) for n in (1, 2)}
    return made_of[build]


@pytest.fixture
def by_traffic(runs: Runs) -> Runs:
    """The same, by traffic weight."""
    return replace(runs, by_traffic=True)


def test_the_cells_are_all_there_are(runs: Runs) -> None:
    assert runs.calls(1) == GOOD
    assert serving(runs) == "1"
    assert runs.calls(2, bad=True) == BAD
    assert serving(runs) == "1"


@pytest.mark.parametrize(("at", "when"), cells(GOOD))
def test_a_killed_rollout_is_finished_by_the_next_run(runs: Runs, at: int, when: When) -> None:
    runs.finish(1)
    killed = runs.start(2, stop=Stop(at, when))
    assert killed.wait() == -signal.SIGKILL

    run = runs.finish(2)

    assert run.wait() == ExitCode.OK, run.said
    assert serving(runs) == "2"


@pytest.mark.parametrize(("at", "when"), cells(BAD, start=6, besides=GOOD))
def test_a_killed_rollback_is_finished_by_the_next_run(runs: Runs, at: int, when: When) -> None:
    runs.finish(1)
    killed = runs.start(2, bad=True, stop=Stop(at, when))
    assert killed.wait() == -signal.SIGKILL

    run = runs.finish(2, bad=True)

    # Gated again, or held for the rollback that was decided.
    assert run.wait() in (ExitCode.ROLLED_BACK, ExitCode.INCONCLUSIVE), run.said
    assert serving(runs) == "1"


@pytest.mark.parametrize(
    ("at", "when"),
    [
        (4, "before"),
        pytest.param(1, "after", marks=pytest.mark.exhaustive),
        pytest.param(2, "after", marks=pytest.mark.exhaustive),
    ],
)
def test_who_was_frozen_until_another_took_over_changes_nothing_when_it_wakes(
    runs: Runs, at: int, when: When
) -> None:
    runs.finish(1)
    frozen = runs.start(2, stop=Stop(at, when, signal.SIGSTOP))
    frozen.wait_until_frozen()
    other = runs.finish(2)
    assert other.wait() == ExitCode.OK, other.said
    before = runs.connect().history(PRODUCTION)

    frozen.thaw()

    assert frozen.wait() == ExitCode.INCONCLUSIVE, frozen.said
    assert "nothing more is changed by this run" in frozen.said
    assert runs.connect().history(PRODUCTION) == before
    assert serving(runs) == "2"


def test_of_two_at_once_one_goes_on_and_the_other_says_who_it_is(runs: Runs) -> None:
    both: list[Run] = [runs.start(1), runs.start(1)]

    codes = [run.wait() for run in both]

    assert sorted(codes) in ([ExitCode.OK, ExitCode.INCONCLUSIVE], [ExitCode.OK, ExitCode.OK])
    for run, code in zip(both, codes, strict=True):
        if code == ExitCode.INCONCLUSIVE:
            assert "is being changed by" in run.said
    assert serving(runs) == "1"
    assert len(runs.connect().history(PRODUCTION)) == 2


def test_the_cells_of_a_rollout_by_traffic_are_all_there_are(by_traffic: Runs) -> None:
    by_traffic.finish(1)
    assert by_traffic.calls(2) == GOOD_BY_TRAFFIC
    assert serving(by_traffic) == "2"


@pytest.mark.parametrize(("at", "when"), cells(GOOD_BY_TRAFFIC, besides=GOOD)[:-3])
def test_a_killed_rollout_by_traffic_is_finished_by_the_next_run(
    by_traffic: Runs, at: int, when: When
) -> None:
    by_traffic.finish(1)
    killed = by_traffic.start(2, stop=Stop(at, when))
    assert killed.wait() == -signal.SIGKILL

    run = by_traffic.finish(2)

    assert run.wait() == ExitCode.OK, run.said
    assert serving(by_traffic) == "2"
