"""Increase of a server's histogram between scrapes of its `/metrics`.

Counters begin at 0 again when a server restarts, and a scrape may fail: both are counted, so that
a verdict can say what it may have missed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_Series = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One series in one scrape: cumulative counts by upper bound, and when it was created."""

    counts: Mapping[float, float]
    created: float | None

    def restarted_since(self, before: "_Reading") -> bool:
        if self.created != before.created:
            return True
        return any(count < before.counts.get(le, 0.0) for le, count in self.counts.items())


@dataclass(slots=True)
class HistogramIncrease:
    """Increase of a histogram from the first scrape that could be read to the last.

    `cumulative` has the requests at or below each upper bound in seconds, infinity included, as
    `bucket_verdict` takes them; empty until two scrapes could be read. `resets` is how often a
    server's counters were reset, `missing_scrapes` how many scrapes failed or had no such
    histogram.
    """

    metric: str
    """Name of the histogram, for example `vllm:e2e_request_latency_seconds`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a series must be labelled with to be counted; all that are, are added up."""
    cumulative: dict[float, float] = field(default_factory=dict, init=False)
    resets: int = field(default=0, init=False)
    missing_scrapes: int = field(default=0, init=False)
    _latest: dict[_Series, _Reading] = field(default_factory=dict, init=False)

    def add(self, scrape: str | None) -> None:
        """Take in the text of the next scrape, in order of time; None if there was no answer."""
        found = {} if scrape is None else _readings(scrape, self.metric, self.labels)
        if not found:
            self.missing_scrapes += 1
            return
        first = not self._latest
        for series, now in found.items():
            before = self._latest.get(series)
            if first:
                continue
            if before is None or now.restarted_since(before):
                # A series that appears later is a server that has started since: all it has
                # counted is new, as it is after a restart.
                self.resets += before is not None
                before = _Reading({}, now.created)
            for le, count in now.counts.items():
                new = count - before.counts.get(le, 0.0)
                self.cumulative[le] = self.cumulative.get(le, 0.0) + new
        self._latest.update(found)


def _readings(scrape: str, metric: str, labels: Mapping[str, str]) -> dict[_Series, _Reading]:
    """Every series of the histogram; none when the text cannot be read to its end."""
    counts: dict[_Series, dict[float, float]] = {}
    created: dict[_Series, float] = {}
    try:
        for name, own, value in _samples(scrape):
            if any(own.get(key) != wanted for key, wanted in labels.items()):
                continue
            series = tuple(sorted((k, v) for k, v in own.items() if k != "le"))
            if name == f"{metric}_bucket":
                counts.setdefault(series, {})[float(own["le"])] = value
            elif name == f"{metric}_created":
                created[series] = value
    except (ValueError, KeyError):
        return {}
    return {
        series: _Reading(buckets, created.get(series))
        for series, buckets in counts.items()
        if math.inf in buckets
    }


def _samples(scrape: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for family in text_string_to_metric_families(scrape):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value
