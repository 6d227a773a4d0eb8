"""Whose samples these are: of one deployment, each of its servers scraped once.

A series is what its labels say, and a target has exactly one `up`. Samples of two Prometheis, two
clusters, two servers under one name, or of series that were relabelled meanwhile are named by what
tells them apart, and nothing is counted.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise

from vllm_rollout.model.units import counted
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.series import (
    SAME_PROCESS_SECONDS,
    Scrapes,
    Target,
    clock,
    name_of,
    target_of,
)

_OF_SCRAPERS = re.compile(
    r"(.*_)?k8s|(.*_)?(.*cluster|replica|prometheus|monitor|receive|tenant|region|location|datacenter|dc"
    r"|site|env|environment|stage|project|account)(_.*)?",
    re.IGNORECASE,
)
"""Labels of clusters and of Prometheis (external labels)."""
_OF_SERVERS = re.compile(
    r"(.*_)?(pod|replicaset|node|nodename|host|hostname|instance|ip|address|machine|uid|hash|index"
    r"|version|revision|chart|image|build|commit|track|zone|rack|rank|group_key)(_.*)?",
    re.IGNORECASE,
)
"""Labels in which servers of one deployment differ: where one runs, and which build it is."""
_MOST_VALUES = 3
_RELABELLED = (
    "and its process is the same or not known: which of its counts are new is not known; wait "
    "until the window begins later"
)


def mixed_targets(
    up: Iterable[Series],
    scrapes: Scrapes,
    fixed: Collection[str],
    key: str,
    *,
    of_one_service: bool = True,
) -> str:
    """Return why the targets are not those of one deployment, each scraped once, or nothing.

    `fixed` are the labels that the policy names, in `key`. Other labels may differ between servers
    of one service where they say which server or build it is; between other targets, where they do
    not say whose Prometheus it is.
    """
    return next(_mixed([s for s in up if s.samples], scrapes, fixed, key, of_one_service), "")


def _mixed(
    up: Sequence[Series], scrapes: Scrapes, fixed: Collection[str], key: str, of_one_service: bool
) -> Iterator[str]:
    unfixed = []
    for name in sorted({name for series in up for name in series.labels} - {*fixed, "__name__"}):
        values = sorted({series.labels.get(name, "none") for series in up})
        unusual = of_one_service and not _OF_SERVERS.fullmatch(name)
        if len(values) > 1 and (unusual or _OF_SCRAPERS.fullmatch(name)):
            more = ["…"] if len(values) > _MOST_VALUES else []
            unfixed.append(f"{name} ({', '.join(values[:_MOST_VALUES] + more)})")
    if unfixed:
        yield (
            f"targets have several values of a label that no selector fixes: {', '.join(unfixed)}; "
            f"set it in `{key}` to the deployment's value, or to off where all of them are the "
            "deployment's"
        )
    for target, own in _by_target(up).items():
        if any(later.samples[0][0] <= earlier.samples[-1][0] for earlier, later in pairwise(own)):
            yield (
                f"{name_of(target)} has {len(own)} `up` at once, which differ in "
                f"{_differing(own)}: a target has exactly one; set the label that says who scraped "
                f"in `{key}`, or give each server an instance of its own"
            )
    for target, samples in scrapes.started.items():
        for was, now in pairwise(samples):
            if was[1] - now[1] > SAME_PROCESS_SECONDS:
                yield (
                    f"the start of the process of {name_of(target)} went back at {clock(now[0])}: "
                    "several servers are scraped as one; give each an instance of its own"
                )


def renamed_targets(up: Iterable[Series], scrapes: Scrapes) -> str:
    """Return which target's labels changed while its process went on, or nothing.

    A new server at the address of one that is gone is no such target.
    """
    for target, own in _by_target([s for s in up if s.samples]).items():
        for earlier, later in pairwise(own):
            left = earlier.samples[-1][0]
            first = min((t for t, _ in scrapes.started.get(target, ()) if t > left), default=None)
            good = any(value == 1 for _, value in later.samples)
            if good and first not in scrapes.changes(target):
                since = clock(later.samples[0][0])
                differing = _differing([earlier, later])
                return (
                    f"{name_of(target)} has other labels since {since} ({differing}), {_RELABELLED}"
                )
    return ""


def unattributed(found: Iterable[Series], scrapes: Scrapes) -> str:
    """Return why series of one metric are not those of their targets' scrapes, or nothing."""
    for target, own in _by_target([s for s in found if s.samples]).items():
        if foreign := _foreign(target, own, scrapes):
            return (
                f"{name_of(target)} has samples from {counted(foreign, 'time')} at which it has no "
                "`up`: several Prometheis answer as one, or a rule has made them; ask a single "
                "one, for what it has scraped (`prometheus.url`, `prometheus.requests.metric`), or "
                "set the label that tells them apart (replica, prometheus) in `prometheus.labels`"
            )
        if relabelled := _relabelled(target, own, scrapes):
            return relabelled
    return ""


def _foreign(target: Target, own: Iterable[Series], scrapes: Scrapes) -> int:
    """The number of times of samples that no scrape of the target can have brought."""
    scraped = scrapes.scraped(target)
    strange = {at for series in own for at, _ in series.samples}.difference(scraped)
    newest = max((at for at, _ in scrapes.up.get(target, ())), default=None)
    # The newest scrape may have come in between the two questions.
    late = [at for at in strange if newest is not None and at > newest]
    return len(strange) - (len(late) == 1)


def _relabelled(target: Target, own: Sequence[Series], scrapes: Scrapes) -> str:
    """Return which labels changed from one scrape to the next: a process keeps its counters."""
    begins = scrapes.begins(own)[target]
    for earlier, later in pairwise(scrapes.scraped(target)):
        if any(earlier < begin <= later for begin in begins):
            continue
        ended = [s for s in own if s.samples[-1][0] == earlier]
        came = [s for s in own if s.samples[0][0] == later]
        if ended and came:
            differing = min((_differing([a, b]) for a in ended for b in came), key=len)
            return (
                f"series of {name_of(target)} have other labels since {clock(later)} "
                f"({differing}), {_RELABELLED}"
            )
    return ""


def _by_target(found: Iterable[Series]) -> dict[Target, list[Series]]:
    """The series of each target, by their beginning."""
    own: dict[Target, list[Series]] = {}
    for series in sorted(found, key=lambda series: series.samples[0]):
        own.setdefault(target_of(series), []).append(series)
    return own


def _differing(found: Sequence[Series]) -> str:
    names = sorted({name for series in found for name in series.labels})
    return ", ".join(n for n in names if len({s.labels.get(n) for s in found}) > 1) or "no label"
