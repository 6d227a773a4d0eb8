"""Over-saturation: requests come faster than the service ends them, and the backlog is too long.

Seen from outside, without a word from the server: how many requests were sent and how many have
ended, second by second. It shows that a rate is too high before the first request is late, as a
queue grows before anybody has waited in it to its end.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from vllm_rollout.model.units import format_value

_PARTS = 4
"""The time so far is cut into these; the backlog must have grown in each but the first, in which
it grows from nothing under any load."""
_SETTLED = 4 / 3
"""Times the limit that must have passed. In the last quarter a service that meets the limit then
ends requests at the rate at which they came, but for the few that it may be late with."""


@dataclass(frozen=True, slots=True)
class BacklogSample:
    """Requests sent and ended by `at` seconds after the first request was due."""

    at: float
    sent: int
    ended: int

    @property
    def under_way(self) -> int:
        """Requests sent that have not ended."""
        return self.sent - self.ended


class Backlog:
    """Watches how many requests are under way, for a limit that each may take in seconds.

    `risk` is the chance that a backlog which wanders without a trend seems to grow in each part
    of the time: arrivals and ends being Poisson, their difference has their sum for variance, so
    each part alone may err by the cube root of `risk`. That and the limit must both be passed.

    Raises:
        ValueError: a limit that is no positive time, a risk not between 0 and 0.5.
    """

    def __init__(self, *, limit_seconds: float, risk: float) -> None:
        from scipy.special import ndtri

        if not 0 < limit_seconds < math.inf:
            raise ValueError(f"limit_seconds must be a positive time, not {limit_seconds}")
        if not 0 < risk < 0.5:
            raise ValueError(f"risk must lie between 0 and 0.5, not {risk}")
        self._limit_seconds = limit_seconds
        self._deviations = -float(ndtri(risk ** (1 / (_PARTS - 1))))
        self._samples = [BacklogSample(0.0, 0, 0)]

    def add(self, *, at: float, sent: int, ended: int) -> str:
        """Take in one more sample; return why the service is over-saturated, or "".

        A sample that is no later than the one before is left out.
        """
        last = self._samples[-1]
        if not at > last.at or sent < last.sent or ended < last.ended:
            return ""
        self._samples.append(BacklogSample(at, sent, ended))
        if at < _SETTLED * self._limit_seconds or not self._grows():
            return ""
        before, now = self._at(at * (1 - 1 / _PARTS)), self._samples[-1]
        per_second = (now.ended - before.ended) / (now.at - before.at)
        wait = now.under_way / per_second if per_second else math.inf
        if not wait >= self._limit_seconds:
            return ""
        grows = (now.under_way - before.under_way) / (now.at - before.at)
        takes = f"takes {format_value(wait, 's')}" if per_second else "is not answered at all"
        return (
            f"over-saturated: {now.under_way:,} requests are under way and "
            f"{format_value(grows, '1/s')} more each second; one that comes now {takes} at the "
            f"{format_value(per_second, '1/s')} that are ended (limit "
            f"{format_value(self._limit_seconds, 's')})"
        )

    def _grows(self) -> bool:
        """Return True if more came than ended in each part of the time but the first."""
        edges = [self._at(self._samples[-1].at * part / _PARTS) for part in range(1, _PARTS + 1)]
        for before, after in pairwise(edges):
            came, ended = after.sent - before.sent, after.ended - before.ended
            if not came - ended > self._deviations * math.sqrt(came + ended):
                return False
        return True

    def _at(self, seconds: float) -> BacklogSample:
        """Return the last sample at or before `seconds`."""
        return self._samples[bisect_right(self._samples, seconds, key=lambda each: each.at) - 1]
