"""Increases and gaps of what Prometheus scraped, by hand."""

from datetime import timedelta
from typing import Any

import pytest
from support.scripted_prometheus import NOW, TARGET, T, samples

from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.series import scrapes_of


@pytest.mark.parametrize(
    ("counter", "amount", "resets"),
    [
        (samples(10, 12, 15, 15, 20), 10, 0),
        (samples(10, 12, 3, 5, 5), 2 + 3 + 2, 1),  # it fell: 3 are new
        (samples(10, 12, None, 14, 14), 2 + 2, 0),  # missing from a scrape: no new process
        (samples(None, None, 4, 4, 6), 6, 0),  # the first failure makes the series
        (samples(), 0, 0),
    ],
)
def test_a_counter_grows_by_what_was_counted_and_nothing_is_made_up(
    counter: Any, amount: float, resets: int
) -> None:
    up = Series(TARGET, samples(1, 1, 1, 1, 1))
    scrapes = scrapes_of([up], NOW - timedelta(seconds=60), NOW)
    (grown,) = scrapes.increases([Series(TARGET, counter)])
    assert (grown.amount, grown.resets) == (amount, resets)


def test_a_start_time_tells_the_counts_of_a_new_process() -> None:
    """Without one, what may be new is neither counted nor forgotten."""
    start = NOW - timedelta(seconds=60)

    def grown(up: Any, counter: Any, *started: float | None) -> tuple[float, float, int]:
        begun = [Series(TARGET, samples(*started))]
        scrapes = scrapes_of([Series(TARGET, up)], start, NOW, begun)
        (found,) = scrapes.increases([Series(TARGET, counter)])
        return found.amount, found.unsure, found.resets

    fresh, counter = samples(None, None, 1, 1, 1), samples(None, None, 900, 901, 903)
    assert grown(fresh, counter) == (3, 900, 0)
    assert grown(fresh, counter, None, None, *[T - 600] * 3) == (3, 900, 0)
    assert grown(fresh, counter, None, None, *[T - 40] * 3) == (903, 0, 0)
    well, missing = samples(1, 1, 1, 1, 1), samples(10, 12, None, 14, 14)
    assert grown(well, missing) == (4, 12, 0)
    assert grown(well, missing, *[T - 600] * 5) == (4, 0, 0)
    assert grown(well, missing, T - 600, T - 600, None, T - 20, T - 20) == (16, 0, 1)


@pytest.mark.parametrize(
    ("up", "gaps"),
    [
        (samples(1, 1, 1, 1, 1), 0),
        (samples(1, 1, 0, 1, 1), 0),  # one lost scrape is shorter than the longest gap
        (samples(1, 0, 0, 0, 1), 1),  # down: nothing is known of what it counted
        (samples(1, None, None, None, 1), 1),  # Prometheus did not scrape
        (samples(1, 1, None, None, None), 1),  # stale: the newest sample is too old
        (samples(None, None, None, 1, 1), 1),  # it began too late
        ((), 1),
    ],
)
def test_time_without_a_scrape_is_a_gap(up: Any, gaps: int) -> None:
    scrapes = scrapes_of([Series(TARGET, up)], NOW - timedelta(seconds=60), NOW)
    assert len(scrapes.gaps(30)) == gaps


def test_one_server_that_is_down_beside_others_is_named_and_one_that_is_gone_is_not() -> None:
    other = {**TARGET, "instance": "10.0.0.2:8000"}
    well = Series(TARGET, samples(1, 1, 1, 1, 1))
    start = NOW - timedelta(seconds=60)
    (gap,) = scrapes_of([well, Series(other, samples(1, 0, 0, 0, 0))], start, NOW).gaps(30)
    assert "no scrape of 10.0.0.2:8000 from 09:59:00 to 10:00:00 UTC" in str(gap)
    gone = scrapes_of([well, Series(other, samples(1, 1))], start, NOW)
    assert gone.gaps(30) == ()
