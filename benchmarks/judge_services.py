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
