"""What is kept of a load run, and what is asked of its generator."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from vllm_rollout.judge import Outcome
from vllm_rollout.model.load_plan import LoadPlan, RateSegment
from vllm_rollout.model.load_result import LoadResult, RequestOutcome, RequestRecord
from vllm_rollout.policy import load_policy
from vllm_rollout.pytest_plugin.judged_load import JudgedLoad
from vllm_rollout.pytest_plugin.run_judged_load import judge_run, write_requests

LOAD = load_policy().environments["staging"].load
PLAN = LoadPlan(base_url="http://h", model="m", rate_per_second=100, duration_seconds=10)
OK = RequestRecord(
    intended=1.0, sent=1.001, first_token=1.1, end=2.0, outcome=RequestOutcome.OK, status=200
)
UNSENT = RequestRecord(intended=3.0, outcome=RequestOutcome.UNSENT, error='"quoted"\nlines')
RESULT = LoadResult(
    plan=PLAN, started_at=0.0, requests=(OK,) * 1000, generator_cpu=0.5, generator_seconds=5.0
)


def judged(result: LoadResult) -> JudgedLoad:
    return JudgedLoad(result=result, confidence=0.95)


def test_every_request_is_kept_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    write_requests(replace(RESULT, requests=(OK, UNSENT)), path)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["intended"], first["sent"], first["first_token"], first["end"]) == (
        1.0,
        1.001,
        1.1,
        2.0,
    )
    assert (first["outcome"], first["status"]) == ("ok", 200)
    assert (second["outcome"], second["sent"], second["end"]) == ("unsent", None, None)
    assert second["error"] == '"quoted"\nlines'


def test_a_generator_with_figures_within_the_policy_passes() -> None:
    assert judge_run(LOAD, judged(RESULT)).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": ()},
        {"requests": (OK,) * 999 + (UNSENT,)},
        {"requests": (structs.replace(OK, sent=1.2),) * 1000},
        {"generator_cpu": None},
        {"generator_cpu": 0.95},
        {"stopped_after_seconds": 0.0, "requests": ()},
    ],
)
def test_a_generator_that_fell_short_never_passes(changes: dict[str, object]) -> None:
    assert not judge_run(LOAD, judged(replace(RESULT, **changes))).passed  # type: ignore[arg-type]


def test_an_incomplete_run_says_why_and_never_passes() -> None:
    died = replace(RESULT, incomplete="a worker died", unended=("worker 1 (here)",))
    verdict = judge_run(LOAD, judged(replace(died, generator_cpu=0.97)))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("the load run is incomplete: a worker died")
    assert "See what ended worker 1 (here)" in verdict.remedy


def test_the_workers_it_takes_are_those_of_the_highest_rate() -> None:
    """5 ms each: 100/s take half a core, and 400/s, at the end of the ramp, two."""
    busy = replace(RESULT, generator_cpu=0.97)
    ramp = replace(PLAN, shape=(RateSegment(seconds=10, start=1, end=400),))
    verdict = judge_run(LOAD, judged(replace(busy, plan=ramp)))
    assert "`load.workers` to 4" in verdict.remedy
