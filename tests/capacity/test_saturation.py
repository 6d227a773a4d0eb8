"""A backlog that grows is seen early, and one that only wanders is not taken for it."""

import numpy as np
import pytest
from support.queueing import Queue

from vllm_rollout.capacity.saturation import Backlog

LIMIT = 2.0


def seen_at(queue: Queue, rate: float, seed: int, *, seconds: float = 60.0) -> float | None:
    """When the queue is found over-saturated, looked at once a second; None if never."""
    arrivals, ends = queue.run(rate, seconds, np.random.default_rng(seed))
    ended = np.sort(ends)
    backlog = Backlog(limit_seconds=LIMIT, risk=0.002)
    for at in np.arange(1.0, seconds):
        sent, done = (int(np.searchsorted(times, at)) for times in (arrivals, ended))
        if backlog.add(at=float(at), sent=sent, ended=done):
            return float(at)
    return None


def test_a_service_that_meets_the_limit_is_not_over_saturated() -> None:
    """Up to its capacity for good, whether few servers or many, busy or half idle."""
    for queue in (Queue(1, 0.025), Queue(32, 0.5), Queue(64, 1.0, "constant")):
        capacity = queue.capacity(LIMIT)
        for share in (0.5, 0.9, 1.0):
            found = [seen_at(queue, share * capacity, seed) for seed in range(8)]
            assert found == [None] * 8, (queue, share)


def test_twice_too_much_is_seen_when_the_backlog_reaches_the_limit() -> None:
    """It takes as long as the limit; the first late request is known only after twice that."""
    queue = Queue(32, 0.5)
    found = [seen_at(queue, 2 * queue.throughput, seed) for seed in range(8)]
    assert all(at is not None and at <= 3 * LIMIT for at in found)


def test_a_server_that_answers_nothing_is_over_saturated() -> None:
    """Without an end of any request there is no rate to work the backlog off."""
    backlog = Backlog(limit_seconds=3, risk=0.002)
    said = [backlog.add(at=float(at), sent=10 * at, ended=0) for at in range(1, 8)]
    assert said[:3] == ["", "", ""]
    assert "is not answered at all" in said[3]


def test_no_load_and_samples_that_go_backwards_say_nothing() -> None:
    backlog = Backlog(limit_seconds=1, risk=0.002)
    assert not any(backlog.add(at=float(at), sent=0, ended=0) for at in range(1, 30))
    assert backlog.add(at=5.0, sent=1_000, ended=0) == ""


@pytest.mark.parametrize(("limit", "risk"), [(0, 0.1), (float("inf"), 0.1), (1, 0), (1, 0.5)])
def test_numbers_that_mean_nothing_are_refused(limit: float, risk: float) -> None:
    with pytest.raises(ValueError, match="must"):
        Backlog(limit_seconds=limit, risk=risk)
