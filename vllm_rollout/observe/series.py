"""Scraped samples over a stretch of time: increases of counters, and gaps.

Nothing is extrapolated. A counter that falls, or was missing from a scrape that succeeded, was
reset; time without a scrape is a gap and is named.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from vllm_rollout.model.request_counts import Gap
from vllm_rollout.observe.prometheus import Series

Target = tuple[str, str]
"""Job and instance, by which Prometheus itself tells targets apart."""


@dataclass(frozen=True, slots=True)
class Increase:
    """Increase of a counter, and how often it was reset meanwhile."""

    amount: float
    resets: int


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Scrapes of each target, by its `up`: the times in Unix seconds, with 1 or 0."""

    up: Mapping[Target, tuple[tuple[float, float], ...]]
    start: float
    end: float

    @property
    def targets(self) -> int:
        """Number of targets known in this time."""
        return sum(any(at > self.start for at, _ in seen) for seen in self.up.values())

    def gaps(self, longest_seconds: float) -> tuple[Gap, ...]:
        """Stretches of more than `longest_seconds` in which no target, or one that was known, gave
        no samples; by time.
        """
        every = sorted({at for seen in self.up.values() for at, value in seen if value == 1})
        found = list(self._between("any target", every, self.start, self.end, longest_seconds))
        for target, seen in self.up.items():
            times = [at for at, _ in seen if at > self.start]
            if not times or any(gap.what == "any target" for gap in found):
                continue
            good = [at for at, value in seen if value == 1]
            # Only while it was known: a pod that is gone is not missed.
            first = self.start if seen[0][0] <= self.start else times[0]
            found += self._between(target[1] or "a target", good, first, times[-1], longest_seconds)
        return tuple(sorted(found, key=lambda gap: gap.start))

    @staticmethod
    def _between(
        what: str, times: Sequence[float], start: float, end: float, longest: float
    ) -> Iterable[Gap]:
        # A sample from before the start covers the time up to the first one after it.
        before = max((at for at in times if at <= start), default=start)
        for earlier, later in pairwise([before, *(at for at in times if start < at <= end), end]):
            if later - earlier > longest:
                yield Gap(
                    what,
                    datetime.fromtimestamp(max(earlier, start), UTC),
                    datetime.fromtimestamp(later, UTC),
                )

    def increase(self, series: Series) -> Increase:
        """Return the increase of `series` from `start` to `end`.

        A series that comes up on a target which was scraped before has counted from 0 (the first
        failure makes the series of failures). Of a target that is itself new only what came after
        its first sample is counted.
        """
        scraped = [at for at, value in self.up.get(target_of(series), ()) if value == 1]
        amount, resets = 0.0, 0
        before: tuple[float, float] | None = None
        for at, value in series.samples:
            missed = before is not None and any(before[0] < scrape < at for scrape in scraped)
            if before is None:
                grown = value if any(scrape < at for scrape in scraped) else 0.0
            elif missed or value < before[1]:
                grown = value
            else:
                grown = value - before[1]
            if at > self.start:
                amount += grown
                resets += before is not None and (missed or value < before[1])
            before = (at, value)
        return Increase(amount, resets)


def target_of(series: Series) -> Target:
    """The scraped target that a series is of."""
    return series.labels.get("job", ""), series.labels.get("instance", "")


def scrapes_of(up: Iterable[Series], start: datetime, end: datetime) -> Scrapes:
    """The scrapes that the series of `up` tell of; those before `start` are its baseline."""
    seen: dict[Target, tuple[tuple[float, float], ...]] = {}
    for series in up:
        if series.samples:
            both = (*seen.get(target_of(series), ()), *series.samples)
            seen[target_of(series)] = tuple(sorted(both))
    return Scrapes(seen, start.timestamp(), end.timestamp())
