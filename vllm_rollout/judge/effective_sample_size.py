"""Effective sample size of autocorrelated requests: how many of them count as one.

A stall makes all requests late that meet it. Ten late ones from one stall are one piece of
evidence, and a bound that counts them as ten is too narrow. The effective size of n dependent
requests is n divided by

    D = 1 + 2 (rho_1 + rho_2 + …)

with rho_l the correlation of "bad" between requests l apart (Geyer 1992, Stat. Sci. 7:473,
section 3.1; "design effect" where surveys are drawn in clusters, Kish 1965). Bursts of B requests
that are all bad give D = B.
"""

import math
from array import array

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.model.percentiles import nearest_rank

# Chance of finding, at one span, a dependence that is not there.
_FALSE_ALARM = 0.001
# A burst is longer than the last span if so many more pairs are seldom those of bursts near by.
_NEAR_BY_CHANCE = 0.2
# Standard errors by which D is enlarged. The three constants are set by benchmarks/judge_bursts.py.
_STANDARD_ERRORS = 1.5
# A span is looked at only if the stream is 2 to this power times longer: else there is nothing
# to compare with.
_DOUBLINGS_UNSEEN = 3
# A latency of that fraction of the limit is near it.
_NEAR = 0.5
# Dependence is looked for among the latest of them, so that memory stays bounded.
_REMEMBERED = 2**20


def block_length(bad: NDArray[np.bool_]) -> int:
    """Return how many requests count as one, from which of them were bad, in order of time.

    1 where no dependence is found: the requests look independent, or too few are bad to tell.
    """
    return block_length_at(np.flatnonzero(bad), len(bad))


def block_length_at(positions: NDArray[np.int64], n: int) -> int:
    """The same from the rising places (0 to `n` - 1) of the bad ones.

    Pairs of bad requests at most `span` apart are counted, for spans of 1, 2, 4 …, and compared
    with what independent requests would bring: a number of pairs that is Poisson where bad ones
    are few, and narrower by the share of good ones, squared, where they are many. The greatest D
    of all spans with too many pairs is taken. A doubled span counts only if what it adds is more
    than bursts of the D so far would bring by coming near each other: each two of them bring D²
    pairs at once. Where the longest span counts, the bursts may be longer still: as D grew by the
    last doubling, it is taken to grow up to the whole stream. D is known only as well as the
    bursts are many, so it is enlarged by 1.5 standard errors of 1 / sqrt(bursts), and rounded up.
    """
    from scipy.special import gammainc

    if 2 * len(positions) > n:  # D is the same for the good ones, and the rarer kind tells more
        good = np.ones(n, dtype=np.bool_)
        good[positions] = False
        positions = np.flatnonzero(good)
    bad = len(positions)
    if bad < 2:
        return 1
    good_share = 1 - bad / n
    around = np.concatenate((positions, positions + n))  # as on a ring: no span has an edge
    greatest = growth = 1.0
    pairs_before, expected_before = 0, 0.0
    span = 1

    def by_chance(pairs: int, expected: float, burst: float) -> float:
        scale = (burst * good_share) ** 2
        return float(gammainc(pairs / scale, expected / scale)) if pairs > 0 else 1.0

    while span << _DOUBLINGS_UNSEEN <= n:
        within = np.searchsorted(around, positions + span, side="right")
        pairs = int(np.sum(within - np.arange(1, bad + 1)))
        expected = bad * (bad - 1) * span / (n - 1)
        before = greatest
        if (
            by_chance(pairs, expected, 1) < _FALSE_ALARM
            and by_chance(pairs - pairs_before, expected - expected_before, greatest)
            < _NEAR_BY_CHANCE
        ):
            greatest = max(greatest, 1 + 2 * (pairs - expected) / (bad * good_share))
        growth = greatest / before
        pairs_before, expected_before = pairs, expected
        span *= 2
    if greatest > 1:
        greatest *= growth**_DOUBLINGS_UNSEEN
        greatest *= 1 + _STANDARD_ERRORS * math.sqrt(greatest / bad)
    return min(n, math.ceil(greatest))


def burst_length(
    latencies_seconds: NDArray[np.float64], percentile: float, *, limit_seconds: float
) -> int:
    """Return how many requests count as one, from the latencies of a whole load in order of time.

    Examined are those at the limit or above. Where the percentile itself is at half the limit or
    above, those at half of it are examined too, and the longer bursts count: a service that slows
    down and recovers shows it there before it does harm. One that is faster by half has to have
    bursts above the limit to be near it.
    """
    near = _NEAR * limit_seconds
    rank = nearest_rank(len(latencies_seconds), percentile) - 1
    measured = np.partition(latencies_seconds, rank)[rank]
    levels = [limit_seconds, near] if measured >= near else [limit_seconds]
    return max(block_length(latencies_seconds >= level) for level in levels)


def burst_length_so_far(
    latencies_seconds: NDArray[np.float64], percentile: float, *, limit_seconds: float
) -> int:
    """The same from the first latencies of a load, more carefully.

    The few that are slow among the first do not show yet how they hang together. So, once any came
    to half the limit, those above their own percentile and above their median are examined.
    """
    levels = [latencies_seconds >= limit_seconds]
    if latencies_seconds.max() >= _NEAR * limit_seconds:
        ranks = [nearest_rank(len(latencies_seconds), part) - 1 for part in (50, percentile)]
        ordered = np.partition(latencies_seconds, ranks)
        levels += [latencies_seconds > ordered[rank] for rank in ranks]
    return max(map(block_length, levels))


def check_burst(burst: int) -> int:
    """Return `burst`, the number of requests in a row that may be correlated, if it is valid.

    Raises:
        ValueError: not a whole number from 1.
    """
    if not burst >= 1 or burst % 1:
        raise ValueError(f"burst must be a whole number of requests from 1, not {burst}")
    return int(burst)


class BadRequests:
    """Positions of the bad requests in a stream, as it grows."""

    def __init__(self) -> None:
        self._positions = array("q")

    def add(self, positions: NDArray[np.int64]) -> None:
        """Remember bad requests at `positions`, rising and after all those before."""
        _remember(self._positions, positions)

    def add_counted(self, bad: int, begin: int, total: int) -> None:
        """Remember `bad` of the `total` requests from `begin` on, whose order is not known.

        They are taken to be spread evenly: what a batch hides is not held against it.
        """
        if bad == total == 1:
            self._positions.append(begin)
            _forget(self._positions)
            return
        first = max(0, bad - _REMEMBERED)
        places = begin + (np.arange(first, bad) + 0.5) * (total / max(bad, 1))
        self.add(places.astype(np.int64))

    def block_length(self, n: int) -> int:
        """Return how many of the `n` requests so far count as one."""
        positions = np.array(self._positions, dtype=np.int64)
        begin = int(positions[0]) if len(positions) >= _REMEMBERED else 0
        return block_length_at(positions - begin, n - begin)


class LatestLatencies:
    """The latest latencies of a stream, in order of time, for the bursts among its slowest."""

    def __init__(self) -> None:
        self._seconds = array("d")

    def add_one(self, seconds: float) -> None:
        """Remember one latency."""
        self._seconds.append(seconds)
        _forget(self._seconds)

    def add(self, seconds: NDArray[np.float64]) -> None:
        """Remember more latencies; an infinite one had no answer."""
        _remember(self._seconds, seconds)

    def block_length(self, percentile: float, limit_seconds: float) -> int:
        """Return how many requests count as one."""
        return burst_length_so_far(np.array(self._seconds), percentile, limit_seconds=limit_seconds)


def _remember(memory: "array[int] | array[float]", more: NDArray[np.generic]) -> None:
    latest = np.ascontiguousarray(more[-_REMEMBERED:], dtype=memory.typecode)
    memory.frombytes(latest.tobytes())
    _forget(memory)


def _forget(memory: "array[int] | array[float]") -> None:
    """Drop what is too old to matter."""
    if len(memory) > 2 * _REMEMBERED:
        del memory[:-_REMEMBERED]
