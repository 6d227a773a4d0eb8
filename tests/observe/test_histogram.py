"""Bucket counts between scrapes: restarts and failed scrapes are counted, never smoothed over."""

import math
import re
from pathlib import Path

import pytest

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.buckets import bucket_verdict
from vllm_rollout.observe.histogram import HistogramIncrease

METRIC = "vllm:e2e_request_latency_seconds"
DATA = Path(__file__).parents[1] / "data" / "vllm-0.32.0"
SCRAPE = (DATA / "noauth" / "metrics_1_after.body").read_text(encoding="utf-8")


def scrape(*counts: int, created: float = 1.0, engine: str = "0") -> str:
    """A histogram with bounds 1, 2.5 and infinity."""
    lines = [
        f'{METRIC}_bucket{{engine="{engine}",le="{le}"}} {count}'
        for le, count in zip(("1.0", "2.5", "+Inf"), counts, strict=True)
    ]
    head = f"# TYPE {METRIC} histogram"
    gauge = f'# TYPE {METRIC}_created gauge\n{METRIC}_created{{engine="{engine}"}} {created}'
    return "\n".join([head, *lines, gauge]) + "\n"


def increase(*scrapes: str | None, **labels: str) -> HistogramIncrease:
    found = HistogramIncrease(METRIC, labels)
    for text in scrapes:
        found.add(text)
    return found


def test_what_was_counted_before_the_first_scrape_is_not_counted_again():
    found = increase(scrape(5, 6, 7), scrape(6, 8, 10), scrape(9, 12, 17))
    assert found.cumulative == {1.0: 4, 2.5: 6, math.inf: 10}
    assert (found.resets, found.missing_scrapes) == (0, 0)


def test_a_restart_counts_from_zero_and_is_reported():
    found = increase(scrape(5, 6, 7), scrape(8, 9, 10), scrape(1, 2, 3), scrape(2, 4, 6))
    assert found.cumulative == {1.0: 3 + 2, 2.5: 3 + 4, math.inf: 3 + 6}
    assert found.resets == 1


def test_a_restart_that_has_overtaken_the_old_counts_is_seen_by_its_time():
    found = increase(scrape(5, 6, 7), scrape(9, 9, 9, created=2.0))
    assert found.cumulative == {1.0: 9, 2.5: 9, math.inf: 9}
    assert found.resets == 1


@pytest.mark.parametrize(
    "broken",
    [None, "", "<html>502</html>", "up 1\n", scrape(9, 9, 9).replace("+Inf", "9.0")],
)
def test_a_scrape_that_cannot_be_read_is_missing_and_loses_no_count(broken):
    found = increase(broken, scrape(0, 0, 0), broken, scrape(5, 6, 7))
    assert found.cumulative == {1.0: 5, 2.5: 6, math.inf: 7}
    assert found.missing_scrapes == 2
    verdict = bucket_verdict(
        found.cumulative,
        percentile=50,
        limit_seconds=2.5,
        confidence=0.8,
        missing_scrapes=found.missing_scrapes,
    )
    assert "2 scrapes missing" in verdict.reason


def test_one_scrape_is_no_observation_and_never_a_pass():
    for found in (increase(), increase(None), increase(scrape(1000, 1000, 1000))):
        assert found.cumulative == {}
        verdict = bucket_verdict(
            found.cumulative, percentile=95, limit_seconds=2.5, confidence=0.95
        )
        assert verdict.outcome is Outcome.INCONCLUSIVE


def test_replicas_are_added_up_and_one_that_starts_later_is_new():
    first, second = scrape(5, 6, 7), scrape(1, 2, 3, engine="1")
    found = increase(first, first + second)
    assert found.cumulative == {1.0: 1, 2.5: 2, math.inf: 3}
    assert found.resets == 0
    assert increase(first, first + second, engine="0").cumulative[math.inf] == 0


def test_the_answer_of_a_real_server_is_read():
    none_yet = re.sub(rf"(?m)^({METRIC}_(?:bucket|count).*) \S+$", r"\1 0.0", SCRAPE)
    found = increase(none_yet, SCRAPE, model_name="llama-2-7b")
    assert found.cumulative[math.inf] == 13
    assert found.cumulative[2.5] <= found.cumulative[5.0] <= 13
    assert increase(none_yet, SCRAPE, model_name="other").missing_scrapes == 2
