"""A result says of itself what it lacks, and nothing that was planned is left out of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_rollout.load.collect import LoadCollector
from vllm_rollout.load.request_log import LOG_NAME, LogWriter, WorkerNode
from vllm_rollout.model.load_plan import LoadPlan
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord

PLAN = LoadPlan(
    base_url="http://127.0.0.1:8000",
    model="llama-2-7b",
    rate_per_second=10,
    warmup_seconds=0.5,
    duration_seconds=1,
    arrivals="constant",
    workers=2,
)


def collected(
    folder: Path, spoil: Callable[[Path], object] = Path.exists, within: float | None = 0.001
) -> LoadResult:
    """The result of a whole run whose first log was spoilt."""
    collector = LoadCollector(PLAN, folder)
    for index in range(2):
        node = WorkerNode(
            name=f"pod-{index}", clock_ahead_seconds=7.0 * index, clock_within_seconds=within
        )
        writer = LogWriter(folder / LOG_NAME.format(index=index), started_at=1.5e9, node=node)
        for number in range(index, 15, 2):
            due = number / 10
            writer.record(
                RequestRecord(
                    number=number,
                    intended=due,
                    sent=due,
                    end=due + 0.2,
                    outcome=RequestOutcome.OK,
                )
            )
        writer.tick(sent=8 - index, busy_seconds=0.3 * (index + 1))
        writer.end()
    spoil(folder / LOG_NAME.format(index=0))
    collector.read(to_the_end=True)
    return collector.result()


def without_line(number: int) -> Callable[[Path], object]:
    def spoil(log: Path) -> None:
        lines = log.read_text().splitlines(keepends=True)
        del lines[number]
        log.write_text("".join(lines))

    return spoil


NO_END = "only 1 of 2 load workers ended by themselves, not worker 0 (pod-0)"
SILENT = "only 1 of 2 load workers ended by themselves, not worker 0 (which sent nothing)"
ONE_GONE = "1 of 15 requests not sent or without a record; 1 finished request missing"


@pytest.mark.parametrize(
    ("spoil", "incomplete", "unsent"),
    [
        (without_line(-1), NO_END, 0),
        (without_line(-3), f"{ONE_GONE} from the request log", 1),
        (without_line(1), f"{ONE_GONE} from the request log", 0),
        (
            lambda log: log.write_text(log.read_text() + "nonsense\n"),
            "1 line of the request log cannot be read",
            0,
        ),
        (
            lambda log: log.write_text(log.read_text()[:-4]),
            f"{NO_END}; 1 line of the request log cannot be read",
            0,
        ),
        (Path.unlink, f"{SILENT}; 8 of 15 requests not sent or without a record", 5),
    ],
    ids=["no end", "a request lost", "one lost in the warm-up", "a bad line", "cut", "no log"],
)
def test_whatever_a_log_lacks_makes_the_result_incomplete(
    tmp_path: Path, spoil: Callable[[Path], object], incomplete: str, unsent: int
) -> None:
    result = collected(tmp_path, spoil)
    assert result.incomplete == incomplete
    assert result.total == 10
    assert result.failures_by_kind == ({"unsent": unsent} if unsent else {})


def test_a_whole_run_is_complete_in_order_and_without_the_warm_up(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME.format(index=0)).write_text("left by an earlier run\n")
    result = collected(tmp_path)
    assert result.incomplete == ""
    assert [request.intended for request in result.requests] == [
        number / 10 for number in range(5, 15)
    ]
    assert (result.started_at, result.failures) == (1.5e9, 0)
    assert result.generator_cpu == pytest.approx(0.6 / 1.6), "up to the last answer, at 1.6 s"
    assert result.generator_seconds == pytest.approx(0.9)


def test_a_problem_seen_from_outside_is_told_first(tmp_path: Path) -> None:
    result = LoadCollector(PLAN, tmp_path).result(problem="killed by signal 9")
    assert result.incomplete.startswith("killed by signal 9; only 0 of 2")
    assert result.failures_by_kind == {"unsent": 10}


def test_a_closed_loop_has_no_schedule_and_a_lost_request_is_missed_all_the_same(
    tmp_path: Path,
) -> None:
    plan = replace(PLAN, arrivals="closed", users=2, workers=1)
    collector = LoadCollector(plan, tmp_path)
    log = tmp_path / LOG_NAME.format(index=0)
    writer = LogWriter(log, started_at=1.5e9)
    for number in range(5):
        due = 0.6 + number / 10
        ends = {"sent": due, "end": due + 0.1, "outcome": RequestOutcome.OK}
        writer.record(RequestRecord(number=number, intended=due, **ends))  # type: ignore[arg-type]
    writer.tick(sent=5, busy_seconds=0.1)
    writer.end()
    without_line(2)(log)
    collector.read(to_the_end=True)
    assert collector.result().incomplete == "1 finished request missing from the request log"


def test_workers_whose_clocks_are_not_known_did_not_surely_start_together(tmp_path: Path) -> None:
    assert collected(tmp_path, within=0.2).incomplete == "", "a skew that is known is corrected"
    for within in (0.3, None):
        incomplete = collected(tmp_path, within=within).incomplete
        assert incomplete.startswith("when worker 0 (pod-0), worker 1 (pod-1) started is not known")


def test_times_of_another_clock_are_told_by_the_clock_here(tmp_path: Path) -> None:
    collector = LoadCollector(PLAN, tmp_path)
    LogWriter(tmp_path / LOG_NAME.format(index=0), started_at=1.5e9).end()
    collector.read()
    collector.clock_ahead_seconds = 100.0
    assert collector.started_at == 1.5e9 - 100
