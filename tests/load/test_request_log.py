"""The request log says everything about a worker, also that it did not end by itself."""

import math
from pathlib import Path

import pytest
from msgspec import structs

from vllm_rollout.load.arrivals import arrivals
from vllm_rollout.load.load_progress import ProgressMeter
from vllm_rollout.load.request_log import LogReader, LogWriter
from vllm_rollout.model.load_plan import LoadPlan, RateSegment
from vllm_rollout.model.load_result import RequestOutcome, RequestRecord

OK = RequestRecord(
    intended=0.25,
    sent=0.2501,
    first_token=0.3,
    end=1.000001,
    outcome=RequestOutcome.OK,
    status=200,
    prompt_tokens=2,
    completion_tokens=8,
)
FAILED = RequestRecord(
    intended=1.0, sent=1.0, end=31.0, outcome=RequestOutcome.TIMEOUT, error='"quoted"\nlines'
)


def test_what_is_written_is_read_while_the_log_grows(tmp_path: Path) -> None:
    path = tmp_path / "requests" / "worker-0.jsonl"
    reader = LogReader(path)
    assert reader.read() == [], "before the worker has started"
    writer = LogWriter(path, started_at=1.5e9)
    writer.record(structs.replace(OK, number=0))
    writer.tick(sent=2, busy_seconds=0.5)
    assert reader.read() == [OK]
    writer.record(structs.replace(FAILED, number=1))
    writer.tick(sent=2, busy_seconds=0.75)
    [failed] = reader.read()
    assert failed == structs.replace(FAILED, number=1)
    assert failed.first_token is None
    assert (reader.started_at, reader.sent, reader.busy_seconds) == (1.5e9, 2, 0.75)
    assert not reader.ended
    writer.end()
    assert reader.read(to_the_end=True) == []
    assert reader.ended
    assert reader.unparsable == 0


def test_a_line_cut_by_a_kill_is_unparsable_only_once_nobody_writes_any_more(
    tmp_path: Path,
) -> None:
    path = tmp_path / "worker-0.jsonl"
    writer = LogWriter(path, started_at=0.0)
    writer.record(structs.replace(OK, number=0))
    writer.end()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    reader = LogReader(path)
    reader.read()
    assert reader.unparsable == 0
    reader.read(to_the_end=True)
    assert reader.unparsable == 1
    assert not reader.ended


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "7",
        "{}",
        '{"line": "start", "at": null}',
        '{"line": "other"}',
        '{"line": "tick", "sent": Infinity, "busy_seconds": 0}',
        "[]",
        "[" * 100_000,
        '[0, 0.1, 0.1, null, 0.2, "splendid", 200, 1, 1, "", "", 0]',
        '[0, null, 0.1, null, 0.2, "ok", 200, 1, 1, "", "", 0]',
        '[0, 0.1, 0.1, null, null, "ok", 200, 1, 1, "", "", 0]',
        '[0, 0.1, 0.1, null, 0.2, "ok", 200, 1, 1, "", "", 0, "more"]',
    ],
)
def test_a_line_of_no_known_form_is_counted_and_never_a_request(tmp_path: Path, line: str) -> None:
    path = tmp_path / "worker-0.jsonl"
    path.write_text(line + "\n")
    reader = LogReader(path)
    assert reader.read() == []
    assert reader.unparsable == 1


def test_progress_never_looks_better_for_failures_or_the_warm_up() -> None:
    plan = LoadPlan(
        base_url="http://h", model="m", rate_per_second=1, duration_seconds=9, warmup_seconds=1
    )
    meter = ProgressMeter(plan, schedule=[float(second) for second in range(10)])
    start = meter.progress(elapsed_seconds=-0.1, sent=0)
    assert start.latency.percentile(50) is start.lag_p99_seconds is start.generator_cpu is None
    assert (start.elapsed_seconds, start.remaining_seconds, start.planned) == (0, 10, 10)
    meter.add([OK])
    assert meter.progress(elapsed_seconds=1, sent=1).latency.count == 0, "warm-up"
    good = RequestRecord(
        intended=2.0, sent=2.0, first_token=2.1, end=2.5, outcome=RequestOutcome.OK
    )
    meter.add([good, good, FAILED])
    now = meter.progress(elapsed_seconds=4, sent=3, busy_seconds=1)
    assert (now.sent, now.done, now.failures, now.unsent) == (4, 4, 1, 0)
    assert now.latency.percentile(50) == pytest.approx(0.5, rel=1e-3)
    assert now.latency.at_rank(2) == pytest.approx(0.5, rel=1e-3)
    assert now.latency.at_rank(3) == math.inf
    assert now.ttft.percentile(50) == pytest.approx(0.1, rel=1e-3)
    assert now.latency.percentile(95) == now.ttft.percentile(95) == math.inf
    assert now.generator_cpu == 0.25


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    shape = (RateSegment(seconds=10, start=1, end=1), RateSegment(seconds=10, start=5, end=5))
    plan = LoadPlan(
        base_url="http://h",
        model="m",
        rate_per_second=1,
        duration_seconds=20,
        arrivals="constant",
        shape=shape,
    )
    meter = ProgressMeter(plan, schedule=list(arrivals(plan)))
    seen = [
        meter.progress(elapsed_seconds=at, sent=sent) for at, sent in ((0, 0), (10, 9), (20, 29))
    ]
    assert [each.asked_rate_per_second for each in seen] == [1, 1, 5]
    assert [each.sent_rate_per_second for each in seen] == [0, 0.9, 2]
    after = meter.progress(elapsed_seconds=40, sent=29)
    assert (after.remaining_seconds, after.sent_rate_per_second) == (0, 2), (
        "nothing is due any more"
    )
