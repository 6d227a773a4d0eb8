"""Requests and latency of servers, counted from the series that were scraped of them."""

import math
import re
from collections.abc import Iterable, Sequence

from vllm_rollout.model.request_counts import Gap, LatencyCounts, RequestCounts
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.series import Scrapes, Target, target_of
from vllm_rollout.policy.prometheus import RequestCounter


def grown_histogram(
    name: str,
    scrapes: Scrapes,
    found: Sequence[Series],
    created: Iterable[Series],
    gaps: tuple[Gap, ...],
) -> LatencyCounts:
    """Return the increase of a histogram's buckets, all servers added up.

    Only bounds that all have, whose process answered a request, are bounds of the whole.
    """
    servers: dict[tuple[Target, int], dict[float, float]] = {}
    increases = scrapes.increases(found, created)
    for series, grown in zip(found, increases, strict=True):
        bound = bound_of(series)
        for process, amount in grown.by_process.items():
            counts = servers.setdefault((target_of(series), process), {})
            counts[bound] = counts.get(bound, 0.0) + amount
    if not servers or not all(
        math.inf in counts and not any(map(math.isnan, counts)) for counts in servers.values()
    ):
        return LatencyCounts(gaps=gaps, unknown=f"no series of {name}")
    answering = [each for each in servers.values() if each[math.inf]] or [*servers.values()]
    bounds = sorted(set[float].intersection(*map(set, answering)))
    return LatencyCounts(
        cumulative={bound: round(sum(each[bound] for each in answering)) for bound in bounds},
        resets=max(grown.resets for grown in increases),
        gaps=gaps,
        lag=scrapes.lag,
    )


def bound_of(series: Series) -> float:
    """The upper bound of a histogram's bucket; NaN where its label is no number."""
    try:
        return float(series.labels.get("le", "nan"))
    except ValueError:
        return math.nan


def counted_requests(
    source: str,
    counter: RequestCounter,
    scrapes: Scrapes,
    every: Sequence[Series],
    created: Iterable[Series],
    rejections: Sequence[Series],
    gaps: tuple[Gap, ...],
) -> RequestCounts:
    """Return the requests and failures of `every` series of a counter.

    `rejections` are those of the counter of requests that the servers turned away.
    """
    status = counter.status_label
    if not every or not all(series.labels.get(status) for series in every):
        unknown = f"no series of {counter.metric} that all have the label {status}"
        return RequestCounts(source=source, gaps=gaps, unknown=unknown)
    increases = scrapes.increases(every, created)
    failed = re.compile(counter.failed).fullmatch
    answers = [(s.labels[status], grown) for s, grown in zip(every, increases, strict=True)]
    bad = [grown for code, grown in answers if failed(code)]
    refused = [grown for code, grown in answers if code.startswith("4") and not failed(code)]
    unsure = round(sum(grown.unsure for grown in bad))
    failures = round(sum(grown.amount for grown in bad))
    turned_away = scrapes.increases(rejections)
    rejected = round(sum(grown.amount for grown in turned_away))
    unsure += round(sum(grown.unsure for grown in turned_away))
    return RequestCounts(
        source=source,
        total=round(sum(grown.amount for grown in increases)) + unsure,
        refused=round(sum(grown.amount for grown in refused)),
        failures=max(failures, rejected),
        failures_at_most=failures + rejected + unsure,
        resets=max(grown.resets for grown in increases),
        gaps=gaps,
        lag=scrapes.lag,
        interval_seconds=max(scrapes.intervals.values(), default=0.0),
    )
