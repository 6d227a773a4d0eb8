"""Moves from one split of pods to the next: what is ready never falls below what must be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.platform.kubernetes.surge_plan import Pods, surge_plan


def shown(moves: tuple[Pods, ...]) -> list[str]:
    return [f"{p.stable}+{p.canary}{' handover' * p.handover}" for p in moves]


@pytest.mark.parametrize(
    ("start", "goal", "surge", "unavailable", "moves"),
    [
        pytest.param((4, 0), (3, 1), 1, 0, ["4+1", "3+1"], id="the first canary"),
        pytest.param((4, 0), (3, 1), 0, 1, ["3+0", "3+1"], id="no free GPU"),
        pytest.param(
            (7, 1),
            (4, 4),
            1,
            0,
            ["7+2", "6+2", "6+3", "5+3", "5+4", "4+4"],
            id="to half, one by one",
        ),
        pytest.param((7, 1), (4, 4), 8, 0, ["7+4", "4+4"], id="to half with room"),
        pytest.param(
            (2, 2),
            (4, 0),
            1,
            0,
            ["2+2 handover", "3+2 handover", "3+1 handover", "4+1 handover", "4+0"],
            id="to all",
        ),
        pytest.param((4, 0), (4, 0), 1, 0, ["4+0"], id="all at once"),
        pytest.param((4, 0), (1, 1), 1, 0, ["2+0", "2+1", "1+1"], id="the capacity shrinks"),
    ],
)
def test_moves(
    start: tuple[int, int],
    goal: tuple[int, int],
    surge: int,
    unavailable: int,
    moves: list[str],
) -> None:
    found = surge_plan(
        Pods(stable=start[0], canary=start[1]),
        Pods(stable=goal[0], canary=goal[1]),
        capacity=sum(goal),
        surge=surge,
        unavailable=unavailable,
    )

    assert shown(found) == moves


@given(st.data())
def test_pods_leave_only_when_their_place_is_filled(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 12))
    surge = data.draw(st.integers(0, 4))
    unavailable = data.draw(st.integers(0 if surge else 1, 3))
    start, goal = (
        Pods(stable=capacity - canary, canary=canary)
        for canary in (data.draw(st.integers(0, capacity - 1)) for _ in range(2))
    )
    limits = {"surge": surge, "unavailable": unavailable}

    before = start
    for move in surge_plan(start, goal, capacity=capacity, **limits):
        # What is too many leaves at once, what is missing is not there yet.
        ready = min(before.stable, move.stable) + min(before.canary, move.canary)
        assert ready >= capacity - unavailable
        # What is missing may be there before what is too many has begun to leave.
        there = max(before.stable, move.stable) + max(before.canary, move.canary)
        assert there <= capacity + surge
        before = move
    assert (before.stable, before.canary, before.handover) == (goal.stable, goal.canary, False)


def test_without_room_nothing_moves() -> None:
    with pytest.raises(ValueError, match="nothing move"):
        surge_plan(Pods(stable=4), Pods(stable=3, canary=1), capacity=4, surge=0, unavailable=0)
