"""The soak: only time in which a revision was seen healthy counts."""

from datetime import UTC, datetime, timedelta

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.soak import SoakState, Stretch, soak_state, soak_verdict
from vllm_rollout.policy import Soak, load_policy

BEGAN = datetime(2026, 11, 17, 9, 0, tzinfo=UTC)


def rules() -> Soak:
    soak = load_policy(None).environments["staging"].soak
    assert soak is not None
    return soak


def at(hours: float) -> datetime:
    return BEGAN + timedelta(hours=hours)


def well(first: float, last: float, **more: bool) -> Stretch:
    return Stretch(first=at(first), last=at(last), healthy=True, **more)


def ill(first: float, last: float) -> Stretch:
    return Stretch(first=at(first), last=at(last), healthy=False, why="0 of 1 replica ready")


def state(*stretches: Stretch, now: float) -> SoakState:
    return soak_state(stretches, began=BEGAN, now=at(now), rules=rules())


MINUTE = 1 / 60


@pytest.mark.parametrize(
    ("stretches", "now", "hours"),
    [
        pytest.param((), 25, 0, id="not observed"),
        pytest.param((well(0, 25),), 25, 25, id="watched"),
        pytest.param((well(0.1, 24.9),), 25, 25, id="observations near enough to both ends"),
        pytest.param((well(0, 10), well(13, 25)), 25, 22, id="a gap does not count"),
        pytest.param((well(0, 20),), 30, 20, id="nobody has looked since"),
        pytest.param((well(0, 10), ill(10, 10 + MINUTE), well(10 + 2 * MINUTE, 25)), 25, 25,
                     id="a spell within the grace breaks nothing"),
        pytest.param((well(0, 10), ill(10, 10.1), well(10.2, 25)), 25, 14.8,
                     id="longer, and it restarts"),
        pytest.param((well(0, 10), ill(10, 10), well(10.2, 25)), 25, 14.8,
                     id="ill until it is seen to be well"),
        pytest.param((well(0, 10), well(10, 25, restarted=True)), 25, 15, id="a restart"),
        pytest.param((well(-5, -1),), 1, 0, id="of a revision before"),
        pytest.param((well(0, 1), well(3, 30)), 2, 1, id="from after now: the clock went back"),
    ],
)  # fmt: skip
def test_only_time_seen_healthy_counts(
    stretches: tuple[Stretch, ...], now: float, hours: float
) -> None:
    found = state(*stretches, now=now)
    assert found.soaked.total_seconds() / 3600 == pytest.approx(hours, abs=3 * MINUTE)
    assert found.over == (hours >= 24)


def test_what_is_ill_now_is_not_over_however_long_it_was_well() -> None:
    found = state(well(0, 30), ill(30, 30), now=30)
    assert not found.over
    assert soak_verdict(found, remedy="").outcome is Outcome.INCONCLUSIVE
    assert "not healthy now: 0 of 1 replica ready" in soak_verdict(found, remedy="").reason
    assert state(well(0, 30), ill(30, 30), now=31).left == timedelta(hours=24)


def test_the_verdict_names_the_value_the_limit_the_gaps_and_what_is_left() -> None:
    verdict = soak_verdict(state(well(0, 10), well(13, 25), now=25), remedy="watch it")
    assert (verdict.outcome, verdict.remedy) == (Outcome.INCONCLUSIVE, "watch it")
    assert (verdict.measured, verdict.limit) == (22 * 3600, 24 * 3600)
    assert "2h are left" in verdict.reason
    assert "not observed from 2026-11-17 19:00 to 2026-11-17 22:00" in verdict.reason
    assert soak_verdict(state(well(0, 25), now=25), remedy="").outcome is Outcome.PASS
