"""The e-processes behind the sequential tests: fair at the limit, and exact where they decide."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from support.stopping import LIMITS, stop_at

from vllm_rollout.judge.mixture_sprt import e_process_above, e_process_below

PROCESSES = (e_process_below, e_process_above)
NEAREST_RATES = {e_process_below: 0, e_process_above: 1}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_an_e_value_is_fair_at_the_limit_and_falls_on_the_other_side(process, named, n):
    for limit, rates in LIMITS.items():
        mixture = process(limit, rates[NEAREST_RATES[process]] if named else None)

        def mean_e_value(share, limit=limit, mixture=mixture):
            return math.fsum(
                binom.pmf(bad, n, share) * math.exp(mixture.log_e_value(bad, n, limit))
                for bad in range(n + 1)
            )

        assert mean_e_value(limit) == pytest.approx(1, abs=1e-9)
        other_side = limit * (1.5 if process is e_process_below else 0.5)
        assert mean_e_value(other_side) < 1


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("named", [False, True])
def test_looking_after_every_request_is_wrong_no_more_often_than_stated(limit, named):
    rates = LIMITS[limit] if named else (None, None)
    at_limit = stop_at(limit, *rates, share=limit, horizon=round(60 / limit))
    assert 0.02 < at_limit.passed <= 0.05
    assert 0.02 < at_limit.failed <= 0.05
    outside = stop_at(limit, *rates, share=limit * 1.1, horizon=round(60 / limit))
    inside = stop_at(limit, *rates, share=limit * 0.9, horizon=round(60 / limit))
    assert outside.passed < at_limit.passed
    assert inside.failed < at_limit.failed


@given(st.integers(1, 10**7), st.floats(0, 1), st.sampled_from(PROCESSES))
def test_the_bound_is_where_the_e_value_reaches_the_threshold(n, part, process):
    mixture, bad, threshold = process(0.05), math.floor(part * n), math.log(20)
    bound = mixture.bound(bad, n, threshold)
    assert 0 <= bound <= 1
    beyond, within = (1.001, 0.999) if process is e_process_below else (0.999, 1.001)
    if 0 < bound < 1 / 1.001:
        assert mixture.log_e_value(bad, n, bound * beyond) > threshold
        assert mixture.log_e_value(bad, n, bound * within) < threshold


@pytest.mark.parametrize(
    ("process", "named"),
    [(e_process_below, named) for named in (0, -0.1, 0.05, 1, math.nan)]
    + [(e_process_above, named) for named in (0.04, 0.05, 1, math.nan)],
)
def test_a_named_rate_lies_on_the_side_of_the_alternative(process, named):
    with pytest.raises(ValueError, match="must lie between"):
        process(0.05, named)
