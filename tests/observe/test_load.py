"""Load plans are checked, schedules are exact, and results hide nothing."""

import math
from dataclasses import replace
from itertools import chain, pairwise

import pytest

from vllm_rollout.errors import UsageError
from vllm_rollout.observe.arrivals import arrivals, share
from vllm_rollout.observe.load import LoadPlan, LoadResult, RequestOutcome, RequestRecord

PLAN = LoadPlan(
    base_url="http://127.0.0.1:8000",
    model="llama-2-7b",
    rate_per_second=100,
    duration_seconds=30,
    arrivals="constant",
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "127.0.0.1:8000"),
        ("base_url", "ftp://host"),
        ("base_url", "http://user:secret@host"),
        ("base_url", "http://host:99999"),
        ("base_url", "http://host/a?key=secret"),
        ("base_url", "http://host/a\r\nX: y"),
        ("model", ""),
        ("rate_per_second", 0.0),
        ("rate_per_second", math.nan),
        ("duration_seconds", -1.0),
        ("duration_seconds", math.nan),
        ("warmup_seconds", -1.0),
        ("timeout_seconds", math.inf),
        ("max_tokens", 0),
        ("workers", 0),
        ("arrivals", "uniform"),
    ],
)
def test_a_plan_that_makes_no_load_is_refused_by_the_name_of_what_is_wrong(
    field: str, value: object
) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        replace(PLAN, **{field: value})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_plan_survives_json_and_anything_else_is_refused() -> None:
    assert LoadPlan.from_json(PLAN.to_json()) == PLAN
    for text in ("", "[]", "{}", '{"model": "m"}', '{"unknown": 1}'):
        with pytest.raises(UsageError, match="not a load plan"):
            LoadPlan.from_json(text)


@pytest.mark.parametrize("rate", [0.1, 3, 7.3, 49, 100, 1000])
def test_constant_arrivals_are_exact_in_number_and_never_drift(rate: float) -> None:
    times = list(arrivals(replace(PLAN, rate_per_second=rate, warmup_seconds=10)))
    assert len(times) == math.ceil(rate * 40 - 1e-9)
    assert times[0] == 0
    assert times == [number / rate for number in range(len(times))]


def test_poisson_arrivals_follow_from_the_seed_alone_and_have_exponential_gaps() -> None:
    plan = replace(PLAN, arrivals="poisson", seed=7)
    times = list(arrivals(plan))
    assert times == list(arrivals(plan))
    assert times != list(arrivals(replace(plan, seed=8)))
    assert 0 < times[0] <= times[-1] < plan.total_seconds
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # 3,000 gaps: both are within 10% of 1/rate for any seed worth worrying about.
    assert mean == pytest.approx(0.01, rel=0.1)
    assert deviation == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("law", ["constant", "poisson"])
def test_workers_share_out_every_arrival_exactly_once(law: str) -> None:
    plan = replace(PLAN, arrivals=law)
    shares = [list(share(plan, index, 3)) for index in range(3)]
    assert sorted(chain(*shares)) == list(enumerate(arrivals(plan)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_result_counts_every_request_that_did_not_succeed_as_censored() -> None:
    requests = (
        RequestRecord(
            intended=0.0,
            sent=0.1,
            first_token=0.5,
            end=1.0,
            outcome=RequestOutcome.OK,
            completion_tokens=6,
        ),
        RequestRecord(
            intended=1.0, sent=1.0, end=1.1, outcome=RequestOutcome.HTTP_ERROR, status=503
        ),
        RequestRecord(intended=2.0, sent=2.2, end=32.0, outcome=RequestOutcome.TIMEOUT),
        RequestRecord(intended=3.0, outcome=RequestOutcome.UNSENT),
    )
    result = LoadResult(plan=PLAN, started_at=0.0, requests=requests)
    assert result.latencies_seconds == (1.0,)
    assert (result.total, result.failures, result.censored) == (4, 3, 3)
    assert result.latencies_in_order == (1.0, math.inf, math.inf, math.inf)
    assert result.failed_in_order == (False, True, True, True)
    assert result.ttft_in_order == pytest.approx((0.5, math.nan, math.nan, math.nan), nan_ok=True)
    assert result.itl_in_order == pytest.approx((0.1, math.nan, math.nan, math.nan), nan_ok=True)
    one, none = (replace(requests[0], completion_tokens=tokens) for tokens in (1, 0))
    assert one.itl_seconds == 0
    assert math.isnan(none.itl_seconds)
    assert result.failures_by_kind == {"http_error 503": 1, "timeout": 1, "unsent": 1}
    assert result.lag_percentile(100) == pytest.approx(0.2)
    assert math.isnan(replace(result, requests=requests[3:]).lag_percentile(99))
