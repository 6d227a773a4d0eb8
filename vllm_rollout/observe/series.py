"""Scraped samples over a stretch of time: increases of counters, and gaps.

Nothing is extrapolated. A counter begins again with a new process; time without a scrape is a gap
and is named.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from vllm_rollout.model.request_counts import Gap
from vllm_rollout.observe.prometheus import Series

Target = tuple[str, str]
"""Job and instance, by which Prometheus itself tells targets apart."""
Samples = tuple[tuple[float, float], ...]

LONGEST_INTERVAL_SECONDS = 300.0
"""Scrapes further apart are no interval: after five minutes a value is stale to Prometheus."""
_INTERVALS = 2.5
"""So many scrape intervals without a scrape are no gap: one was missed."""
_FEWEST = 3
SAME_PROCESS_SECONDS = 2.0
"""Start times differ by less within one process, where they are computed from a clock."""


@dataclass(frozen=True, slots=True)
class Increase:
    """Increase of a counter, and how often it was reset meanwhile.

    `unsure` may be of the window besides: what a target that is older than the window had counted
    at its first scrape, or a counter that was missing meanwhile where no start time tells whether
    its process is another. `by_process` has `amount` by the target's processes.
    """

    amount: float
    resets: int
    unsure: float = 0.0
    by_process: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scrapes:
    """Scrapes of each target, by its `up`: the times in Unix seconds, with 1 or 0.

    `started` has the start time of a target's process at each scrape.
    """

    up: Mapping[Target, Samples]
    start: float
    end: float
    started: Mapping[Target, Samples] = field(default_factory=dict)
    intervals: Mapping[Target, float] = field(default_factory=dict)
    """Seconds from scrape to scrape, where that is known."""
    lag: str = ""
    """What is late, and by how much, where that is more than scrape intervals explain."""
    missing: str = ""
    """Servers that are there and have no samples, in words."""

    def longest(self, target: Target, seconds: float) -> float:
        """The longest time without a scrape that is no gap; `seconds` at least."""
        return max(seconds, _INTERVALS * self.intervals.get(target, 0.0))

    def lookback(self, seconds: float) -> float:
        """The time before the start in which each target was scraped, if it was; `seconds` at
        least.
        """
        return max((self.longest(target, seconds) for target in self.intervals), default=seconds)

    @property
    def targets(self) -> int:
        """Number of targets known in this time."""
        return sum(any(at > self.start for at, _ in seen) for seen in self.up.values())

    def gaps(self, longest_seconds: float) -> tuple[Gap, ...]:
        """Stretches in which no target, or one that was known, gave no samples; by time.

        They are longer than `longest_seconds` and than some scrape intervals. A process that loads
        its model answers nobody yet: its time before its first scrape is none.
        """
        every = sorted({at for seen in self.up.values() for at, value in seen if value == 1})
        longest = min((self.longest(each, longest_seconds) for each in self.up), default=0)
        longest = max(longest, longest_seconds)
        found = list(self._between("any target", every, self.start, self.end, longest))
        for target, seen in self.up.items():
            times = [at for at, _ in seen if at > self.start]
            if not times or any(gap.what == "any target" for gap in found):
                continue
            good = self.scraped(target)
            # Only while it was known: a pod that is gone is not missed.
            first = self.start if seen[0][0] <= self.start else times[0]
            if good and good[0] > first and self._begins_in_window(target, good[0]):
                first = good[0]
            longest = self.longest(target, longest_seconds)
            for gap in self._between(name_of(target), good, first, times[-1], longest):
                found += self._without_loading(target, gap, longest)
        return tuple(sorted(found, key=lambda gap: gap.start))

    def _begins_in_window(self, target: Target, at: float) -> bool:
        """Return whether the process of a target's first scrape began in the window.

        Without a start time, a target that was not known before is new.
        """
        started = self._start_of(target, at)
        return started > self.start if started else self.up[target][0][0] > self.start

    def _without_loading(self, target: Target, gap: Gap, longest: float) -> list[Gap]:
        """The gap up to the start of the process that ended it: what loads misses no request."""
        ended = gap.end.timestamp()
        started = self._start_of(target, ended)
        if not gap.start.timestamp() < started <= ended:
            return [gap]
        shorter = Gap(gap.what, gap.start, datetime.fromtimestamp(started, UTC))
        return [shorter] if shorter.seconds > longest else []

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

    def increases(self, found: Sequence[Series], created: Iterable[Series] = ()) -> list[Increase]:
        """Return the increase of each series of a metric from `start` to `end`.

        A new process begins at 0; its start time shows it, or a fall where it has none. A
        series that comes up on a target which was scraped before has counted from 0 (the first
        failure makes the series of failures). That of a target that is itself new has counted in
        the window if its process, or by `created` the series, is no older than the window.
        """
        born = {_own(series): dict(series.samples) for series in created}
        begins = self.begins(found)
        return [self._increase(s, begins[target_of(s)], born.get(_own(s), {})) for s in found]

    def _increase(
        self, series: Series, begins: Sequence[float], born: Mapping[float, float]
    ) -> Increase:
        target = target_of(series)
        scraped = self.scraped(target)
        amount, unsure, resets = 0.0, 0.0, 0
        by_process: dict[int, float] = {}
        before: tuple[float, float] | None = None
        for at, value in series.samples:
            if not scraped or at > scraped[-1]:
                break  # of a scrape that came in after the question for `up`
            again, grown = False, 0.0
            if before is not None:
                again = value < before[1] or any(before[0] < b <= at for b in begins)
                grown = value if again else value - before[1]
                missed = bisect_right(scraped, before[0]) < bisect_left(scraped, at)
                if missed and not again and target not in self.started and at > self.start:
                    unsure += before[1]
            elif (
                scraped[0] < at or max(self._start_of(target, at), born.get(at, 0.0)) >= self.start
            ):
                grown = value
            elif at > self.start:
                unsure += value
            if at > self.start:
                process = sum(b <= at for b in begins)
                by_process[process] = by_process.get(process, 0.0) + grown
                amount += grown
                resets += again
            before = (at, value)
        return Increase(amount, resets, unsure, by_process)

    def restarts(self, counters: Sequence[Series]) -> set[float]:
        """Return when a server's process was first seen to be another one."""
        seen = _falls(counters).union(*map(self.changes, self.started))
        return {at for at in seen if at > self.start}

    def begins(self, found: Sequence[Series]) -> dict[Target, list[float]]:
        """The times at which another process of a target was first scraped."""
        own: dict[Target, list[Series]] = {}
        for series in found:
            own.setdefault(target_of(series), []).append(series)
        return {
            target: sorted(self.changes(target) if target in self.started else _falls(each))
            for target, each in own.items()
        }

    def changes(self, target: Target) -> set[float]:
        """The times at which a target's process was first scraped with a later start."""
        pairs = pairwise(self.started.get(target, ()))
        return {now[0] for was, now in pairs if now[1] - was[1] > SAME_PROCESS_SECONDS}

    def _start_of(self, target: Target, at: float) -> float:
        return max((s for t, s in self.started.get(target, ()) if t <= at), default=0.0)

    def scraped(self, target: Target) -> list[float]:
        """The times of a target's successful scrapes."""
        return [at for at, value in self.up.get(target, ()) if value == 1]


def target_of(series: Series) -> Target:
    """The scraped target that a series is of."""
    return series.labels.get("job", ""), series.labels.get("instance", "")


def labels_of(target: Target) -> dict[str, str]:
    """The labels by which series are those of a target."""
    return dict(zip(("job", "instance"), target, strict=True))


def name_of(target: Target) -> str:
    """The instance of a target, as messages have it."""
    return target[1] or "a target"


def clock(at: float) -> str:
    """The time of day of a sample, as messages have it."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S %Z}"


def scrapes_of(
    up: Iterable[Series], start: datetime, end: datetime, started: Iterable[Series] = ()
) -> Scrapes:
    """The scrapes that the series of `up` show; those before `start` are its baseline."""
    return Scrapes(_by_target(up), start.timestamp(), end.timestamp(), _by_target(started))


def scrape_intervals(up: Iterable[Series]) -> dict[Target, float]:
    """Seconds from scrape to scrape of each target that was scraped often enough to tell."""
    apart = {
        target: [later - earlier for (earlier, _), (later, _) in pairwise(seen)]
        for target, seen in _by_target(up).items()
    }
    return {
        target: min(median(each), LONGEST_INTERVAL_SECONDS)
        for target, each in apart.items()
        if len(each) >= _FEWEST
    }


def _by_target(found: Iterable[Series]) -> dict[Target, Samples]:
    seen: dict[Target, Samples] = {}
    for series in found:
        if series.samples:
            both = (*seen.get(target_of(series), ()), *series.samples)
            seen[target_of(series)] = tuple(sorted(both))
    return seen


def _own(series: Series) -> frozenset[tuple[str, str]]:
    """The labels that a counter shares with its `_created`."""
    return frozenset((k, v) for k, v in series.labels.items() if k not in ("__name__", "le"))


def _falls(found: Iterable[Series]) -> set[float]:
    return {now[0] for s in found for was, now in pairwise(s.samples) if now[1] < was[1]}
