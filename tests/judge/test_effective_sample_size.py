"""How many requests count as one: 1 where they are independent, a burst's length where not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_rollout.judge import effective_sample_size as blocks
from vllm_rollout.judge.effective_sample_size import BadRequests, block_length


def in_bursts(rng, n, length, every):
    """Bursts of `length` bad requests, one in `every` on average, at random distances."""
    bad = np.zeros(n, dtype=np.bool_)
    at = 0
    while (at := at + int(rng.geometric(1 / (every - length)))) < n:
        bad[at : at + length] = True
        at += length
    return bad


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.95])
def test_independent_requests_count_for_themselves(share):
    rng = np.random.default_rng(11)
    lengths = [block_length(rng.random(5000) < share) for _ in range(400)]
    assert lengths.count(1) >= 390


@pytest.mark.parametrize("length", [3, 10, 50])
def test_a_burst_counts_about_as_one(length):
    rng = np.random.default_rng(12)
    found = [block_length(in_bursts(rng, 400 * length, length, 20 * length)) for _ in range(100)]
    assert 0.8 * length <= np.median(found) <= 2 * length


@pytest.mark.parametrize("length", [3, 10, 50])
def test_a_burst_of_good_requests_among_bad_ones_counts_alike(length):
    bad = in_bursts(np.random.default_rng(13), 400 * length, length, 20 * length)
    assert block_length(~bad) == block_length(bad) > 1


@given(st.lists(st.booleans(), max_size=30))
def test_too_few_requests_to_tell_count_for_themselves_or_less(bad):
    assert block_length(np.array(bad, dtype=np.bool_)) >= 1


def test_a_stream_is_found_as_bursty_as_the_whole_of_it():
    bad = in_bursts(np.random.default_rng(14), 4000, 10, 200)
    whole, parts = block_length(bad), BadRequests()
    for begin in range(0, len(bad), 137):
        part = bad[begin : begin + 137]
        parts.add(begin + np.flatnonzero(part))
    assert parts.block_length(len(bad)) == whole > 1


def test_an_endless_stream_is_judged_by_its_latest_bad_requests(monkeypatch):
    monkeypatch.setattr(blocks, "_REMEMBERED", 64)
    rng, parts, n = np.random.default_rng(15), BadRequests(), 20_000
    calm, stormy = rng.random(n) < 0.05, in_bursts(rng, n, 10, 200)
    parts.add(np.flatnonzero(calm))
    assert parts.block_length(n) == 1
    parts.add(n + np.flatnonzero(stormy))
    assert parts.block_length(2 * n) >= 5
