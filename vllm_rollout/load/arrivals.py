"""Open-loop schedules of requests, decided before the first one is sent.

A schedule depends on the plan alone, never on how the server answers, so every worker and the
reader of the results can compute the same one.

Where the rate changes, arrivals are made at rate 1 and put at the times by which so many were due
(time change by the integrated rate: Çınlar, Introduction to Stochastic Processes, 4.5): a Poisson
process stays one, and even spacing stays even in what is due.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from vllm_rollout.model.load_plan import LoadPlan, RateSegment


def arrivals(plan: LoadPlan) -> Iterator[float]:
    """Intended send times in seconds from the schedule's zero, ascending, below `total_seconds`.

    Of a plan whose users wait for answers there is none.

    Raises:
        ValueError: arrivals are closed.
    """
    if plan.closed:
        raise ValueError("closed arrivals have no schedule")
    if plan.trace:
        times: Iterator[float] = (plan.warmup_seconds + entry.at for entry in plan.trace)
    else:
        due = poisson(plan.seed) if plan.arrivals == "poisson" else even()
        times = timed(due, _segments(plan))
    return itertools.takewhile(lambda time: time < plan.total_seconds, times)


def share(plan: LoadPlan, index: int, count: int) -> Iterator[tuple[int, float]]:
    """Worker `index` of `count`: every `count`-th arrival, with its number in the schedule."""
    return itertools.islice(enumerate(arrivals(plan)), index, None, count)


def even() -> Iterator[float]:
    """0, 1, 2 …: one arrival each time that one is due."""
    return (float(number) for number in itertools.count())


def poisson(seed: int) -> Iterator[float]:
    """A Poisson process of rate 1: exponential gaps of mean 1, the same for the same seed."""
    gaps = random.Random(seed)  # noqa: S311 - a reproducible schedule, not a secret
    return itertools.accumulate(gaps.expovariate(1.0) for _ in itertools.count())


def timed(due: Iterator[float], segments: Sequence[RateSegment]) -> Iterator[float]:
    """The times at which so many arrivals (`due`, ascending) have come due over the segments.

    Each is computed from its segment's beginning, not by a running sum, so none drifts. Ends with
    the last segment.
    """
    begin, before = 0.0, 0.0
    left = iter(segments)
    segment = next(left, None)
    for count in due:
        while segment is not None and count - before >= segment.requests:
            begin, before = begin + segment.seconds, before + segment.requests
            segment = next(left, None)
        if segment is None:
            return
        yield begin + _seconds_until(count - before, segment)


def _segments(plan: LoadPlan) -> Sequence[RateSegment]:
    """The whole schedule; a shape's warm-up has the rate it begins with."""
    if not plan.shape:
        rate = plan.rate_per_second
        return (RateSegment(seconds=plan.total_seconds, start=rate, end=rate),)
    first = plan.shape[0].start
    warmup = RateSegment(seconds=plan.warmup_seconds, start=first, end=first)
    return (warmup, *plan.shape) if plan.warmup_seconds else plan.shape


def _seconds_until(count: float, segment: RateSegment) -> float:
    """The time into the segment by which `count` arrivals were due.

    The smaller root of slope/2 t² + start t = count, in the form that does not cancel.
    """
    slope = (segment.end - segment.start) / segment.seconds if segment.start != segment.end else 0.0
    root = math.sqrt(max(0.0, segment.start**2 + 2 * slope * count))
    return 2 * count / (segment.start + root) if count else 0.0
