"""When requests shall be sent: open-loop schedules, decided before the first one is sent.

A schedule depends on the plan alone, never on how the server answers, so every worker and the
reader of the results can compute the same one.
"""

import itertools
import random
from collections.abc import Iterator

from vllm_rollout.observe.load import LoadPlan


def arrivals(plan: LoadPlan) -> Iterator[float]:
    """Intended send times in seconds from the schedule's zero, ascending, below `total_seconds`."""
    times = poisson(plan.rate_per_second, plan.seed)
    if plan.arrivals == "constant":
        times = constant(plan.rate_per_second)
    return itertools.takewhile(lambda time: time < plan.total_seconds, times)


def share(plan: LoadPlan, index: int, count: int) -> Iterator[tuple[int, float]]:
    """Worker `index` of `count`: every `count`-th arrival, with its number in the schedule."""
    return itertools.islice(enumerate(arrivals(plan)), index, None, count)


def constant(rate_per_second: float) -> Iterator[float]:
    """One arrival every 1/rate seconds, the first at 0.

    Each time is one division, not a running sum, so it does not drift and the number of arrivals
    in a whole number of intervals is exact.
    """
    return (number / rate_per_second for number in itertools.count())


def poisson(rate_per_second: float, seed: int) -> Iterator[float]:
    """A Poisson process: exponential gaps of mean 1/rate, the same for the same seed."""
    gaps = random.Random(seed)  # noqa: S311 - a reproducible schedule, not a secret
    return itertools.accumulate(gaps.expovariate(rate_per_second) for _ in itertools.count())
