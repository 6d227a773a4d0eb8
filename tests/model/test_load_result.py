"""Load plans are checked, schedules are exact, and results hide nothing."""

import math
from dataclasses import replace
from itertools import chain, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from vllm_rollout.load.arrivals import arrivals, share
from vllm_rollout.model.errors import UsageError
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RateSegment, RequestClass, TraceEntry
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord

PLAN = LoadPlan(
    base_url="http://127.0.0.1:8000",
    model="llama-2-7b",
    rate_per_second=100,
    duration_seconds=30,
    arrivals="constant",
)


def entry(at: float) -> TraceEntry:
    return TraceEntry(at=at, prompt_tokens=10, output_tokens=5)


def request_class(name: str, **changes: object) -> RequestClass:
    fields = {"prompts": ("Hello",), "output": Lengths(median=8, p95=8, longest=8), **changes}
    return RequestClass(name=name, **fields)  # type: ignore[arg-type]


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
        ("users", 3),
        ("shape", (RateSegment(seconds=0, start=1, end=1),)),
        ("shape", (RateSegment(seconds=1, start=0, end=0),)),
        ("shape", (RateSegment(seconds=1, start=math.nan, end=1),)),
        ("trace", (entry(2), entry(1))),
        ("trace", (TraceEntry(at=0, prompt_tokens=0, output_tokens=1),)),
        ("classes", (request_class("a"), request_class("a"))),
        ("classes", (request_class("a", weight=0.0),)),
        ("classes", (request_class("a", kind="words"),)),
    ],
)
def test_a_plan_that_makes_no_load_is_refused_by_the_name_of_what_is_wrong(
    field: str, value: object
) -> None:
    with pytest.raises(UsageError, match=field) as caught:
        replace(PLAN, **{field: value})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_plan_survives_json_and_anything_else_is_refused() -> None:
    shaped = replace(PLAN, shape=(RateSegment(seconds=5, start=1, end=9),))
    traced = replace(PLAN, trace=(entry(0), entry(1.5)))
    chat = request_class(
        "chat",
        api="chat",
        kind="file",
        prompts=(({"role": "user", "content": "Hi"},),),
        prompt_tokens=Lengths(median=1, p95=2, longest=3),
    )
    mixed = replace(PLAN, classes=(request_class("text"), chat))
    for plan in (PLAN, shaped, traced, mixed):
        assert LoadPlan.from_json(plan.to_json()) == plan
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


def test_a_changing_rate_sends_as_many_as_it_says_when_it_says() -> None:
    step = (RateSegment(seconds=10, start=5, end=5), RateSegment(seconds=10, start=50, end=50))
    times = list(arrivals(replace(PLAN, duration_seconds=20, shape=step, warmup_seconds=2)))
    counts = [sum(a <= time < b for time in times) for a, b in ((0, 2), (2, 12), (12, 22))]
    assert counts == [10, 50, 500]

    ramp = (RateSegment(seconds=10, start=0, end=100),)
    plan = replace(PLAN, duration_seconds=10, shape=ramp)
    assert plan.expected_requests == 500
    assert plan.mean_rate_per_second == 50
    times = list(arrivals(plan))
    # Of a rate that grows from 0, t seconds have brought 5 t².
    assert times == pytest.approx([math.sqrt(number / 5) for number in range(500)])
    down = replace(plan, shape=(RateSegment(seconds=10, start=100, end=0),))
    backwards = [10 - time for time in reversed(list(arrivals(down)))]
    assert backwards == pytest.approx([math.sqrt(number / 5) for number in range(1, 501)])


@given(
    seconds=st.lists(st.floats(0.1, 20), min_size=1, max_size=4),
    rates=st.lists(st.floats(0, 50), min_size=5, max_size=5),
    law=st.sampled_from(["constant", "poisson"]),
)
def test_schedules_are_in_order_inside_the_run_and_as_many_as_planned(
    seconds: list[float], rates: list[float], law: str
) -> None:
    shape = tuple(
        RateSegment(seconds=length, start=start, end=end)
        for length, (start, end) in zip(seconds, pairwise(rates), strict=False)
    )
    assume(sum(segment.requests for segment in shape) > 0)
    plan = replace(PLAN, arrivals=law, shape=shape, duration_seconds=sum(seconds))
    times = list(arrivals(plan))
    assert times == sorted(times)
    assert all(0 <= time < plan.total_seconds for time in times)
    slack = 1 if law == "constant" else 6 * math.sqrt(plan.expected_requests) + 6
    assert abs(len(times) - plan.expected_requests) <= slack


def test_a_trace_is_sent_at_its_own_times_after_the_warm_up() -> None:
    plan = replace(PLAN, trace=(entry(0), entry(0.5), entry(29.9)), warmup_seconds=3)
    assert list(arrivals(plan)) == [3, 3.5, 32.9]
    assert plan.expected_requests == 3


def test_users_that_wait_for_answers_have_no_schedule() -> None:
    plan = replace(PLAN, arrivals="closed", users=2)
    assert plan.expected_requests is plan.mean_rate_per_second is None
    with pytest.raises(ValueError, match="no schedule"):
        next(arrivals(plan))


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
    assert result.ttft_in_order == (0.5, None, None, None)
    assert result.itl_in_order == (0.1, None, None, None)
    one, none = (structs.replace(requests[0], completion_tokens=tokens) for tokens in (1, 0))
    assert one.itl_seconds == 0
    assert none.itl_seconds is None
    assert result.failures_by_kind == {"http_error 503": 1, "timeout": 1, "unsent": 1}
    assert result.lag_percentile(100) == pytest.approx(0.2)
    assert replace(result, requests=requests[3:]).lag_percentile(99) is None
    with pytest.raises(ValueError, match="an answer has an end"):
        RequestRecord(intended=0.0, sent=0.0, outcome=RequestOutcome.OK)
