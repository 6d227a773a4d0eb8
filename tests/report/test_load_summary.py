"""What a report shows of a load run."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from vllm_rollout.model.load_figures import LoadSummary
from vllm_rollout.model.load_plan import Lengths, LoadPlan, RequestClass
from vllm_rollout.model.load_result import ItlSummary, LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.report.load_summary import summarize_load

PLAN = LoadPlan(
    base_url="http://127.0.0.1:8000", model="m", rate_per_second=10.0, duration_seconds=10.0
)


def answered(latencies: list[float]) -> LoadResult:
    """A run whose every request was answered, 0.1 s apart."""
    return LoadResult(
        plan=PLAN,
        started_at=0.0,
        requests=tuple(
            RequestRecord(
                intended=i / 10,
                sent=i / 10,
                first_token=i / 10 + latency / 2,
                end=i / 10 + latency,
                outcome=RequestOutcome.OK,
                completion_tokens=5,
            )
            for i, latency in enumerate(latencies)
        ),
    )


def test_a_run_nobody_answered_has_no_figures_and_no_histogram(load_result: LoadResult) -> None:
    """Nothing measured is None, never zero."""
    dead = tuple(
        structs.replace(r, outcome=RequestOutcome.TIMEOUT, sent=None, end=None)
        for r in load_result.requests
    )
    summary = summarize_load(replace(load_result, requests=dead))
    assert summary.failures == summary.total == 1_200
    assert summary.p50_seconds is summary.p95_seconds is summary.ttft_p95_seconds is None
    assert summary.lag_p99_seconds is None
    assert summary.histogram == ()
    assert summary.output_tokens_per_second == 0
    assert all(m.p95_seconds is None and m.failures == m.requests for m in summary.timeline)


def test_a_mix_is_summed_up_class_by_class() -> None:
    """Each class by its own requests; one that none belonged to has no figure, never zero."""
    names = ("short", "long", "none")
    output = Lengths(median=5, p95=5, longest=5)
    classes = tuple(RequestClass(name=name, prompts=("p",), output=output) for name in names)
    result = answered([0.1] * 30 + [2.0] * 10)
    mixed = [
        structs.replace(r, request_class="short" if (r.latency_seconds or 0) < 1 else "long")
        for r in result.requests
    ]
    mixed[-1] = structs.replace(mixed[-1], outcome=RequestOutcome.TIMEOUT)
    short, long, none = summarize_load(
        replace(result, plan=replace(PLAN, classes=classes), requests=tuple(mixed))
    ).classes
    assert (short.name, short.total, short.failures) == ("short", 30, 0)
    assert (long.name, long.total, long.failures) == ("long", 10, 1)
    assert short.p95_seconds == pytest.approx(0.1)
    assert long.p50_seconds == pytest.approx(2)
    assert long.ttft_p95_seconds == pytest.approx(1)
    assert long.itl_p95_seconds == pytest.approx(0.25)
    assert long.output_tokens_per_second > 0
    assert (none.total, none.p95_seconds, none.ttft_p50_seconds) == (0, None, None)
    assert none.output_tokens_per_second == 0


def test_what_the_generator_did_is_summed_up() -> None:
    result = answered([0.1] * 100)
    gaps = ItlSummary(count=9, p50_seconds=0.01, p95_seconds=0.02, p99_seconds=0.03)
    summary = summarize_load(
        replace(result, generator_cpu=0.4, gaps=gaps), stopped="why", requests_file="r.jsonl"
    )
    assert (summary.offered_per_second, summary.generator_cpu, summary.unsent) == (10, 0.4, 0)
    assert (summary.itl_p50_seconds, summary.itl_p99_seconds) == (0.01, 0.03)
    assert (summary.stopped, summary.requests_file) == ("why", "r.jsonl")
    unknown = summarize_load(result)
    assert unknown.generator_cpu is unknown.itl_p95_seconds is None


def test_a_run_without_requests_is_empty() -> None:
    """No request makes no slice and no bin."""
    summary = summarize_load(LoadResult(plan=PLAN, started_at=0.0, requests=(), incomplete="died"))
    assert (summary.total, summary.timeline, summary.histogram) == (0, (), ())
    assert summary.incomplete == "died"


def test_percentiles_are_nearest_rank_over_the_answered() -> None:
    """Of 100 latencies 0.01 s … 1 s the 95th is 0.95 s."""
    summary = summarize_load(answered([i / 100 for i in range(1, 101)]))
    assert summary.p50_seconds == pytest.approx(0.50)
    assert summary.p95_seconds == pytest.approx(0.95)
    assert summary.p99_seconds == pytest.approx(0.99)
    assert summary.ttft_p50_seconds == pytest.approx(0.25)
    assert summary.lag_p99_seconds == 0
    assert summary.output_tokens_per_second == pytest.approx(500 / 10.9)


def test_the_timeline_shows_when_requests_failed(load: LoadSummary) -> None:
    """The failures, all between 30 s and 40 s, are in the slices of that time."""
    at_fault = [m.at_seconds for m in load.timeline if m.failures]
    assert at_fault
    assert all(29 < at < 40 for at in at_fault)
    assert len(load.timeline) <= 120
    assert sum(m.requests for m in load.timeline) == load.total
    assert sum(m.failures for m in load.timeline) == load.failures
    assert load.failures_by_kind == {"http_error 503": load.failures}


@given(st.lists(st.floats(0.0005, 100), min_size=1, max_size=60))
def test_every_answered_request_is_in_the_bin_of_its_latency(latencies: list[float]) -> None:
    """Counts add up, edges rise, and no bin's upper edge is below what it counts."""
    histogram = summarize_load(answered(latencies)).histogram
    uppers = [b.upper_seconds for b in histogram]
    assert sum(b.count for b in histogram) == len(latencies)
    assert uppers == sorted(uppers)
    assert uppers[-1] == pytest.approx(max(latencies))
    seen = 0
    for upper, count in ((b.upper_seconds, b.count) for b in histogram):
        seen += count
        at_most = sum(latency <= upper * (1 + 1e-9) for latency in latencies)
        below = sum(latency < upper * (1 - 1e-9) for latency in latencies)
        assert below <= seen <= at_most
