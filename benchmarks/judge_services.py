"""Simulated services of which the truth is known: laws of latency, and bursts of bad requests.

A table has one row per run and one column per request, in the order of sending.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtri

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Latencies in units of their P95, which for a lognormal law is exp(1.6449 sigma)."""
    return rng.lognormal(0.0, 0.6, shape) / math.exp(1.6448536 * 0.6)


def pareto(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Survival x^-1.5: the mean exists, the variance does not. In units of P95."""
    return (1 + rng.pareto(1.5, shape)) * 0.05 ** (1 / 1.5)


def bimodal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """92% fast, 8% slow by a normal law; P95, the unit, is what 5/8 of the slow ones exceed."""
    slow = 1 + 0.15 * (rng.standard_normal(shape) + 0.3186394)
    return np.where(rng.random(shape) < 0.08, np.abs(slow), 0.2 * rng.random(shape))


def bursts(rng: np.random.Generator, n: int, share: float, mean: float, law: str) -> Bools:
    """Which of `n` requests are bad: bursts of `mean` requests, `share` of all in the long run.

    `law` is "periodic" (bursts at even distances), "random" (at random ones) or "geometric" (and
    of random length). The stream is joined anywhere, within a burst or between two.
    """
    period = mean / share
    before = math.ceil(40 * period)
    count = math.ceil((before + n) / period * 1.5) + 40
    lengths = rng.geometric(1 / mean, count) if law == "geometric" else np.full(count, int(mean))
    if law == "periodic":
        begins = np.arange(count) * round(period) - rng.integers(round(period))
        begins += round(period)
    else:
        gaps = rng.geometric(1 / (period - mean + 1), count) - 1
        begins = (gaps + lengths).cumsum() - lengths
    edges = np.zeros(before + n + 1, dtype=np.int64)
    np.add.at(edges, np.minimum(begins, before + n), 1)
    np.add.at(edges, np.minimum(begins + lengths, before + n), -1)
    return edges.cumsum()[before : before + n] > 0


def half_in_bursts(rng: np.random.Generator, n: int, share: float, length: int) -> Bools:
    """Half of the bad requests in random bursts of `length`, the others on their own."""
    alone = share / 2 / (1 - share / 2)
    return bursts(rng, n, share / 2, length, "random") | (rng.random(n) < alone)


def drifting(rng: np.random.Generator, n: int, share: float, memory: float) -> Floats:
    """Latencies that wander, in units of what `share` of them exceed: one request's says much
    of the next one's.

    Lognormal, the logarithms correlated by `memory` from request to request (AR(1)): at 0.97 and
    10 requests a second, a slow spell lasts some 3 s.
    """
    shocks = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    shocks[0] /= math.sqrt(1 - memory**2)
    return np.exp(0.6 * (lfilter([1.0], [1.0, -memory], shocks) + ndtri(share)))


def healthy(rng: np.random.Generator, n: int, spells: int, length: int, slower: float) -> Floats:
    """Lognormal latencies, median 0.3 s and sigma 0.42, with `spells` of `length` slow requests."""
    slow = np.zeros(n, dtype=np.bool_)
    for begin in rng.integers(0, n - length + 1, spells):
        slow[begin : begin + length] = True
    return rng.lognormal(math.log(0.3), 0.42, n) * np.where(slow, slower, 1.0)


def gamma_spells(rng: np.random.Generator, n: int, share: float, mean: float) -> Bools:
    """Which of `n` requests fall into spells of gamma-distributed length (shape 2): `share`."""
    before = math.ceil(40 * mean / share)
    count = math.ceil((before + n) / mean * share * 1.5) + 40
    on = np.maximum(1, rng.gamma(2.0, mean / 2, count).round()).astype(np.int64)
    off = np.maximum(1, rng.exponential(mean / share - mean, count).round()).astype(np.int64)
    states = np.repeat(np.tile([False, True], count), np.column_stack((off, on)).ravel())
    begin = min(before, len(states) - n)
    return states[begin : begin + n]


def late(rng: np.random.Generator, bad: Bools, limit: float, *, rest: float = 0.0) -> Floats:
    """Latencies of the healthy law below 0.47 of `limit`, the bad ones from `limit` to 1.3 of it.

    None is below `rest`.
    """
    quick = np.minimum(rng.lognormal(math.log(0.1 * limit), 0.42, len(bad)), 0.47 * limit)
    slow = limit * (1 + 0.3 * rng.random(len(bad)))
    return np.maximum(np.where(bad, slow, quick), rest)


def late_in_spells(rng: np.random.Generator, spells: Bools, limit: float, inside: float) -> Floats:
    """The same, of which within spells the share `inside` is late, by a lognormal law."""
    around = limit * np.exp(0.42 * (rng.standard_normal(len(spells)) + ndtri(inside)))
    return np.where(spells, around, late(rng, np.zeros_like(spells), limit))
