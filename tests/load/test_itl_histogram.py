"""Inter-token gaps are counted one by one and merge exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_rollout.load.itl_histogram import ItlHistogram, merged
from vllm_rollout.model.load_result import ItlSummary


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(1e-5, 100), max_size=30), min_size=1, max_size=4))
def test_workers_histograms_add_up_to_that_of_all(workers: list[list[float]]) -> None:
    apart = []
    for gaps in workers:
        histogram = ItlHistogram()
        histogram.add(gaps)
        apart.append(histogram.encoded())
    together = ItlHistogram()
    every = sorted(gap for gaps in workers for gap in gaps)
    together.add(every)
    summary = merged(apart)
    if not every:
        assert summary.count == 0
        return
    assert summary == merged([together.encoded()])
    assert summary.count == len(every)
    exact = every[max(0, int(0.95 * len(every) + 0.5) - 1)]
    assert summary.p95_seconds == pytest.approx(exact, rel=1e-3, abs=1e-6)
    assert summary.longest_seconds == pytest.approx(every[-1], rel=1e-3, abs=1e-6)


def test_nothing_is_no_figure_and_nonsense_is_refused() -> None:
    empty = merged(["", ItlHistogram().encoded()])
    assert empty.count == 0
    assert empty.p95_seconds is None
    for text in ("x", "HISTFAAAAA==", "é"):
        with pytest.raises(ValueError, match="not a histogram"):
            merged([text])
    histogram = ItlHistogram()
    histogram.add(list(np.array([0.0, 1e9])))
    assert merged([histogram.encoded()]).count == 2
    assert ItlSummary().count == 0
