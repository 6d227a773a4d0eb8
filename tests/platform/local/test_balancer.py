"""Shares of the traffic are exact, and nobody gets a request who should not."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.platform.local.proxy import Balancer


def balancer(weights: dict[str, float]) -> Balancer[str]:
    made: Balancer[str] = Balancer()
    made.update(weights)
    return made


def test_nobody_is_picked_where_nobody_is_ready_or_has_weight() -> None:
    assert balancer({}).pick() is None
    assert balancer({"a": 0.0}).pick() is None
    assert balancer({"a": 1.0}).pick(besides="a") is None


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1), st.integers(1, 3))
def test_shares_are_exact_over_whole_rounds(weights: dict[str, int], rounds: int) -> None:
    made = balancer({name: float(weight) for name, weight in weights.items()})
    picks = Counter(made.pick() for _ in range(rounds * sum(weights.values())))
    assert picks == {name: rounds * weight for name, weight in weights.items()}


def test_picks_of_one_are_spread_out_and_not_in_a_row() -> None:
    made = balancer({"a": 2.0, "b": 1.0, "c": 1.0})
    assert [made.pick() for _ in range(8)] == ["a", "b", "c", "a"] * 2


def test_the_same_members_again_do_not_begin_a_new_round() -> None:
    made = balancer({"a": 1.0, "b": 1.0})
    picks = []
    for _ in range(4):
        picks.append(made.pick())
        made.update({"a": 1.0, "b": 1.0})
    assert picks == ["a", "b", "a", "b"]
