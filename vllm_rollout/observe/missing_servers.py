"""Servers that are there, and of which Prometheus has no new samples.

A series ends without a word where its pod is gone, and where its scraper is, or a rule drops it.
The platform's replicas tell which: by name or address where targets have it, else by their number.
Without a platform there is only the number of targets, which a rolling update leaves as it is.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.units import format_value, of_total
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.series import Target, clock, name_of, target_of

LONGEST_LAG_SECONDS = 300.0
"""Newer samples than these are missing, and not late."""
_MOST_NAMED = 3

Replicas = Callable[[], Sequence[Replica] | None]
"""The deployment's replicas as its platform has them; None where no platform is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest time of which every server has a scrape.

    `lag` names what is late, and by how much; `missing` the servers that are there and have no
    samples, or none for longer than a lag may be. Both are empty where nothing is. With `partly`,
    some servers are later than others.
    """

    at: float
    lag: str = ""
    partly: bool = False
    missing: str = ""


@dataclass(slots=True)
class _Lost:
    """Targets that ended though their server is there, and what never had a target, in words."""

    ended: dict[Target, float] = field(default_factory=dict)
    never: list[str] = field(default_factory=list)
    unsure: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Targets by the times of their first and newest samples, and their labels' values."""

    first: Mapping[Target, float]
    last: Mapping[Target, float]
    values: Mapping[Target, Collection[str]]

    def ended(self, current: Collection[Target]) -> list[Target]:
        """Those without new samples, the last to end first."""
        return sorted(set(self.last).difference(current), key=self.last.__getitem__, reverse=True)


def newest_common(
    up: Iterable[Series],
    intervals: Mapping[Target, float],
    start: float,
    end: float,
    *,
    replicas: Sequence[Replica] | None,
    longest: float,
) -> Newest:
    """Return the newest time up to `end` of which every server has a scrape.

    That is `end` itself where each was scraped an interval before, and where nothing is as new as a
    lag may be: what is missing is a gap then. `start` is that of the window, `longest` the longest
    time without a scrape that is no gap. A server that is gone does not count.
    """
    seen = _seen(up)
    newest = max(seen.last.values(), default=-1.0)
    if end - newest > LONGEST_LAG_SECONDS:
        return Newest(at=end)
    usual = max(intervals.values(), default=longest / 1.5)
    slack = {target: 1.5 * intervals.get(target, usual) for target in seen.last}
    current = {target for target, at in seen.last.items() if at >= newest - slack[target]}
    if replicas is None:
        lost = _in_no_ones_place(seen, current, start, longest)
    else:
        lost = _there(seen, current, replicas, start, ready_by=newest - longest)
    late = {t: at for t, at in lost.ended.items() if end - at <= LONGEST_LAG_SECONDS}
    missing = [
        f"{name_of(target)} has no samples since {clock(at)}"
        for target, at in lost.ended.items()
        if target not in late
    ]
    words = _listed([*missing, *lost.never], "; ") + lost.unsure if missing or lost.never else ""
    common = {target: seen.last[target] for target in current} | late
    if all(end - at <= slack[target] for target, at in common.items()):
        return Newest(at=end, missing=words)
    lags = {"Prometheus": end - newest} if end - newest > max(slack.values()) else {}
    lags |= {name_of(target): end - at for target, at in sorted(late.items())}
    texts = [f"{name} by {format_value(round(s), 's')}" for name, s in lags.items()]
    lag = _listed(texts, ", ").replace(" by ", " lags by ", 1)
    return Newest(
        at=min(common.values()),
        lag=lag + lost.unsure if late else lag,
        partly=bool(late),
        missing=words,
    )


def _seen(up: Iterable[Series]) -> _Seen:
    first: dict[Target, float] = {}
    last: dict[Target, float] = {}
    values: dict[Target, set[str]] = {}
    for series in up:
        if series.samples:
            target = target_of(series)
            first[target] = min(first.get(target, series.samples[0][0]), series.samples[0][0])
            last[target] = max(last.get(target, -1.0), series.samples[-1][0])
            values.setdefault(target, set()).update(series.labels.values())
    return _Seen(first, last, values)


def _there(
    seen: _Seen,
    current: Collection[Target],
    replicas: Sequence[Replica],
    start: float,
    *,
    ready_by: float,
) -> _Lost:
    """Return what is lost of servers that the platform has, ready by `ready_by` or earlier."""
    serve = [replica for replica in replicas if not replica.follower]
    by_replica = [
        (each, [t for t in seen.last if is_of(each, t, seen.values[t])]) for each in serve
    ]
    ready = [r for r in serve if r.ready and _ready_since(r) <= ready_by]
    lost = _Lost()
    if not any(own for _, own in by_replica):
        server = _server_of(seen, len(ready))
        here = set(map(server, current))
        ended = [target for target in seen.ended(current) if server(target) not in here]
        gone = list(dict.fromkeys(map(server, ended)))[: max(0, len(ready) - len(here))]
        lost.ended = {target: seen.last[target] for target in ended if server(target) in gone}
        if (short := len(ready) - len(here) - len(gone)) > 0:
            lost.never.append(f"{of_total(short, len(ready), 'ready replica')} without samples")
        return lost
    for replica, own in by_replica:
        ended = [t for t in seen.ended(current) if t in own]
        if any(target in current for target in own):
            # Another of its ports, and not one that had its name before.
            ended = [t for t in ended if _is_at(replica, t) and seen.last[t] > start]
        elif replica not in ready:
            ended = [t for t in ended if _is_at(replica, t)]
        elif ended:
            ended = ended[:1]
        else:
            lost.never.append(f"{replica.name} is ready and has no samples")
        lost.ended |= {target: seen.last[target] for target in ended}
    return lost


def _server_of(seen: _Seen, servers: int) -> Callable[[Target], str | Target]:
    """Return what tells the server of a target: the target itself, or its host, where there are
    more targets than servers and each host has several.
    """
    hosts = Counter(map(_host, seen.last))
    several = len(seen.last) > servers and min(hosts.values()) > 1
    return _host if several else lambda target: target


def _in_no_ones_place(
    seen: _Seen, current: Collection[Target], start: float, longest: float
) -> _Lost:
    """Return what ended in the window, or may be late, and nothing came for: what is there is not
    known.
    """
    since = min(start, max(seen.last.values()) - LONGEST_LAG_SECONDS)
    came_after = min(seen.first.values(), default=0.0) + longest
    came = [target for target in current if seen.first[target] > came_after]
    ended = [t for t in seen.ended(current) if seen.last[t] > since]
    ended = ended[: max(0, len(ended) - len(came))]
    unsure = "; whether they are gone is not known without a platform"
    return _Lost({target: seen.last[target] for target in ended}, unsure=unsure)


def is_of(replica: Replica, target: Target, values: Collection[str]) -> bool:
    """Return whether the target is the replica's, by the values of its labels or its address."""
    return replica.name in values or _is_at(replica, target)


def _is_at(replica: Replica, target: Target) -> bool:
    """Return whether the target has the replica's address."""
    at_host = bool(replica.host) and replica.host == _host(target)
    return at_host or replica.address.rpartition("/")[2] == target[1] != ""


def _host(target: Target) -> str:
    _, instance = target
    return instance.rpartition(":")[0].strip("[]") or instance


def _ready_since(replica: Replica) -> float:
    return replica.ready_since.timestamp() if replica.ready_since else 0.0


def _listed(texts: Sequence[str], between: str) -> str:
    more = len(texts) - _MOST_NAMED
    return between.join(texts[:_MOST_NAMED]) + (f"{between}and {more} more" if more > 0 else "")
