"""A generator that did not keep up is never taken for a server that did, or did not."""

import re
from dataclasses import replace

import pytest

from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.generator import generator_verdict, workers_needed
from vllm_rollout.model.load_result import GeneratorFigures

SOUND = GeneratorFigures(
    lag_seconds=0.002,
    cpu=0.3,
    dropped=0,
    total=6000,
    workers=1,
    cpu_seconds_per_request=0.001,
    rate_per_second=300,
)


def judged(cores: int | None = 4, **changes: float | None) -> Verdict:
    figures = replace(SOUND, **changes)  # type: ignore[arg-type]
    return generator_verdict(figures, max_lag_seconds=0.1, max_cpu=0.9, cores=cores)


def test_one_that_kept_up_passes_with_its_figures() -> None:
    verdict = judged()
    assert verdict.passed
    assert "2 ms late" in verdict.reason
    assert "30% of a core" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lag_seconds": 0.25}, "at P99 requests left 250 ms late (`load.max_lag`: 100 ms)"),
        ({"lag_seconds": None}, "left an unknown time late"),
        ({"cpu": 0.97}, "its busiest process used 97% of a core (`load.max_cpu`: 90%)"),
        ({"cpu": None}, "used an unknown share of a core"),
        ({"dropped": 7}, "7 of 6,000 requests not sent"),
        ({"total": 0}, "no request was due"),
    ],
)
def test_whatever_it_fell_short_of_is_named_and_nothing_is_judged(
    changes: dict[str, float | None], said: str
) -> None:
    verdict = judged(**changes)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("the generator was the bottleneck: ")
    assert said in verdict.reason
    assert verdict.remedy


def test_the_remedy_says_how_many_workers_it_takes() -> None:
    """1,000/s at 1 ms each fill a core: two processes have room for that."""
    verdict = judged(cpu=0.99, rate_per_second=1000)
    assert "Set `load.workers` to 2: the generator needs 1 ms of CPU per request" in verdict.remedy
    assert "at up to 1000/s" in verdict.remedy
    assert "cores" not in verdict.remedy
    beyond = judged(cpu=0.99, rate_per_second=5000)
    assert "Set `load.workers` to 9" in beyond.remedy
    assert "has 4 cores" in beyond.remedy


def test_a_generator_with_cpu_to_spare_is_not_told_to_take_more_workers() -> None:
    remedy = judged(lag_seconds=1.0, workers=2).remedy
    assert "More workers would not help" in remedy
    assert "1 process should do and 2 processes ran" in remedy


def test_what_was_not_measured_gives_no_number() -> None:
    verdict = judged(cpu=None, cpu_seconds_per_request=None)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert not re.search("[0-9]", verdict.remedy)


@pytest.mark.parametrize("rate", [1, 100, 1_000, 7_777])
def test_the_workers_named_have_room(rate: int) -> None:
    workers = workers_needed(0.001, rate)
    assert rate * 0.001 / workers <= 0.6
    assert workers == 1 or rate * 0.001 / (workers - 1) > 0.6
