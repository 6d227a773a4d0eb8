"""Planned sample sizes: the least that can decide, and how that is said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.judge.binomial import chance_at_most, share_bounds
from vllm_rollout.judge.sample_size import (
    more_load,
    requests_needed,
    requests_needed_for_percentile,
    requests_to_decide,
)


@pytest.mark.parametrize(
    ("limit", "failures", "needed"),
    [
        (0.05, 0, 59),
        (0.01, 0, 299),
        (0.01, 1, 473),
        (0.01, 3, 773),
        (0.01, 10, 1_693),
        (0.001, 0, 2_995),
        (0.001, 1, 4_742),
        (0.001, 3, 7_752),
        (0.001, 10, 16_959),
        (0.0001, 0, 29_956),
    ],
)
def test_requests_needed_at_95_percent(limit, failures, needed):
    assert requests_needed(limit, 0.95, failures) == needed


@settings(deadline=None)
@given(
    limit=st.floats(0.001, 1),
    confidence=st.floats(0.51, 0.999),
    failures=st.integers(0, 20),
)
def test_one_request_fewer_than_needed_would_not_do(limit, confidence, failures):
    needed = requests_needed(limit, confidence, failures)
    assert share_bounds(failures, needed, confidence)[1] < limit
    assert needed == failures + 1 or share_bounds(failures, needed - 1, confidence)[1] >= limit


@pytest.mark.parametrize(("percentile", "needed"), [(50, 5), (95, 59), (99, 299), (99.9, 2_995)])
def test_requests_needed_to_bound_a_percentile_at_95_percent(percentile, needed):
    assert requests_needed_for_percentile(percentile, 0.95) == needed


def test_requests_to_decide_grows_without_end_towards_the_limit():
    shares = (0.0, 0.01, 0.04, 0.049)
    towards = [requests_to_decide(share, 0.05, 0.95) for share in shares]
    assert towards == sorted(towards)
    assert towards[0] == 59
    assert requests_to_decide(0.05, 0.05, 0.95) is None
    # Forty in a thousand is settled by what it promises, and not by much less.
    needed = towards[2]
    assert chance_at_most(0.04 * needed, needed, 0.05) <= 0.05
    assert chance_at_most(0.04 * (needed - 1), needed - 1, 0.05) > 0.05


def test_requests_to_decide_settles_a_share_above_the_limit_too():
    assert requests_to_decide(1.0, 0.05, 0.95) == 1
    assert requests_to_decide(0.1, 0.05, 0.95) < requests_to_decide(0.06, 0.05, 0.95)


@pytest.mark.parametrize(
    ("requests", "rate", "words"),
    [
        (2_995, 10.0, "raise `load.duration` to 6m at 10/s"),
        (59, 7.0, "raise `load.duration` to 12s at 7/s"),
        (3_601, 1.0, "raise `load.duration` to 1h4m at 1/s"),
        (10**9, 1e-9, "raise `load.rate`"),
        (2_995, None, "raise `load.duration`"),
        (2_995, float("nan"), "raise `load.duration`"),
    ],
)
def test_more_load_names_a_duration_that_can_be_typed(requests, rate, words):
    assert more_load(requests, rate) == words


@pytest.mark.parametrize(
    "call",
    [
        lambda: requests_needed(0.0, 0.95),
        lambda: requests_needed(1.1, 0.95),
        lambda: requests_needed(float("nan"), 0.95),
        lambda: requests_needed(0.01, 0.95, -1),
        lambda: requests_needed(0.01, 95),
        lambda: requests_needed(0.01, 0.5),
        lambda: requests_needed_for_percentile(100, 0.95),
        lambda: requests_needed_for_percentile(95, float("nan")),
    ],
)
def test_senseless_questions_are_refused(call):
    with pytest.raises(ValueError, match=r"not|cannot"):
        call()
