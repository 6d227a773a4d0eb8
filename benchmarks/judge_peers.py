"""What others decide by, for the same simulated services: tests of two rates, and tools' rules.

The rules are written from the tools' descriptions. Each gives one outcome per run: 1 passes, -1
fails.
"""

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from vllm_rollout.judge.binomial import chance_at_most

LOOKS = 60

Outcomes = NDArray[np.int8]


def wald_requests(
    rng: np.random.Generator, runs: int, share: float, other: float, risk: float
) -> float:
    """Mean number of requests of Wald's sequential test of `share`, the truth, against `other`.

    Both risks are `risk`; thresholds are Wald's, log((1 - risk) / risk) (Wald 1945).
    """
    threshold = math.log((1 - risk) / risk)
    per_bad = math.log(share / other)
    per_good = math.log1p(-share) - math.log1p(-other)
    ahead = math.copysign(threshold, per_good)  # where good requests lead to
    stake, taken, active = np.zeros(runs), np.zeros(runs), np.arange(runs)
    while len(active):
        good = rng.geometric(share, len(active)) - 1
        needed = np.ceil((ahead - stake[active]) / per_good)
        ended = needed <= good
        taken[active] += np.where(ended, needed, good + 1)
        stake[active] += good * per_good + per_bad
        active = active[~ended]
        active = active[np.abs(stake[active]) < threshold]
    return float(taken.mean())


def fixed_requests(low: float, high: float, risk: float) -> int:
    """Fewest requests of which a count tells two rates apart with both risks at most `risk`."""
    for most in range(10_000):

        def refutes_high(n: int, most: int = most) -> bool:
            return chance_at_most(most, n, high) <= risk

        n = bisect_left(range(10**7), True, lo=most + 1, key=refutes_high)
        if chance_at_most(most, n, low) >= 1 - risk:
            return n
    raise ValueError(f"{low} and {high} are too near to each other")


def naive_threshold(
    rng: np.random.Generator, runs: int, share: float, limit: float, requests: int
) -> Outcomes:
    """Fail at the first of 60 looks at which the share so far is above the limit, else pass.

    A k6 threshold with `abortOnFail`; an Argo Rollouts analysis that measures the share so far 60
    times and may not fail once.
    """
    each = requests // LOOKS
    failures = rng.binomial(each, share, (runs, LOOKS)).cumsum(axis=1)
    above = failures > limit * each * np.arange(1, LOOKS + 1) + 1e-9
    return np.where(above.any(axis=1), -1, 1).astype(np.int8)


def locust_percentile(latencies_seconds: NDArray[np.float64], limit_seconds: float) -> Outcomes:
    """Fail when P95 as Locust reports it is above the limit, else pass; one look at the end.

    Locust keeps milliseconds, rounded to two significant digits from 100 on, and counts down from
    the slowest until no more than int(0.95 n) requests remain.
    """
    rank = int(latencies_seconds.shape[1] * 0.95)
    # Rounding keeps the order: the one that is asked for can be rounded alone.
    milliseconds = np.rint(np.partition(latencies_seconds, rank, axis=1)[:, rank] * 1000)
    step = 10 ** np.clip(np.floor(np.log10(np.maximum(milliseconds, 1))) - 1, 0, 3)
    reported = np.rint(milliseconds / step) * step
    return np.where(reported > limit_seconds * 1000, -1, 1).astype(np.int8)


def kayenta_interval(
    rng: np.random.Generator, runs: int, share: float, baseline: float, requests: int
) -> Outcomes:
    """Fail when the canary's error rate is "High" against a baseline's, else pass.

    Both send `requests`, read as 60 rates. High: the whole 98% interval of the Hodges-Lehmann
    shift (Mann-Whitney, normal approximation) is above a quarter of the shift itself.
    """
    each, pairs = requests // LOOKS, LOOKS * LOOKS
    rank = int(pairs / 2 - 2.326 * math.sqrt(pairs * (2 * LOOKS + 1) / 12))
    canary = rng.binomial(each, share, (runs, LOOKS)) / each
    control = rng.binomial(each, baseline, (runs, LOOKS)) / each
    outcomes = np.ones(runs, dtype=np.int8)
    for run in range(runs):
        shifts = np.subtract.outer(canary[run], control[run]).ravel()
        shifts.partition((rank, pairs // 2))
        if shifts[rank] > 0.25 * abs(shifts[pairs // 2]):
            outcomes[run] = -1
    return outcomes
