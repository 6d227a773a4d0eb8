"""The servers' own `/metrics`, scraped twice: where there is no Prometheus to ask.

What is counted between the two scrapes is all that is known of rates. A server that does not
answer, or whose answer is no metrics, is no part of a sum, and so there is none.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vllm_rollout.http_client import HttpClient, HttpError
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.errors import RolloutError
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.units import counted, of_total
from vllm_rollout.observe.answers import page_in
from vllm_rollout.observe.caches import NO_CACHE, cached_by
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.ramp_sides import words_of
from vllm_rollout.observe.series import Scrapes, labels_of, name_of, target_of
from vllm_rollout.observe.server_figures import (
    METRICS,
    NotKnownError,
    ServerSamples,
    server_figures,
)
from vllm_rollout.policy.prometheus import RequestCounter

_MAX_BYTES = 8 * 1024 * 1024
_TIMEOUT_SECONDS = 5.0
_AT_ONCE = 16
_STARTED = "process_start_time_seconds"
_COUNTS = ("_total", "_bucket", "_count", "_sum")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """One answer of one server: its samples by their labels, with the name in `__name__`."""

    at: float
    samples: Mapping[Labels, float]

    @property
    def started(self) -> float | None:
        """When the process was started, if it says so."""
        return self.samples.get((("__name__", _STARTED),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One scrape of each server, by replica, and why there is none of some."""

    scrapes: Mapping[str, Scrape]
    failed: Mapping[str, str]

    @property
    def names(self) -> set[str]:
        """All replicas that were asked."""
        return {*self.scrapes, *self.failed}


class PodMetrics:
    """Scrapes the servers of replicas, each at the address that `url_of` gives ("" if none)."""

    def __init__(self, counter: RequestCounter) -> None:
        self._counter = counter
        self._wanted = {*METRICS, counter.metric, _STARTED}
        self._http = HttpClient(max_bytes=_MAX_BYTES, fresh=True)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def scrape(self, replicas: Sequence[Replica], url_of: Callable[[Replica], str]) -> Round:
        """Scrape all of them at once. Does not raise."""
        found: dict[str, Scrape] = {}
        failed: dict[str, str] = {}
        urls: dict[str, str] = {}
        for replica in replicas:
            try:
                urls[replica.name] = url_of(replica)
            except RolloutError as error:
                failed[replica.name] = words_of(error)

        def one(name: str, url: str) -> None:
            try:
                found[name] = self._one(url)
            except (HttpError, NotKnownError) as error:
                failed[name] = str(error)

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            list(pool.map(one, urls.keys(), urls.values()))
        return Round(scrapes=found, failed=failed)

    def _one(self, url: str) -> Scrape:
        if not url:
            raise NotKnownError(
                "it has no address of its own that can be reached from here "
                "(`kubernetes.reach` in the policy)"
            )
        headers = {"Cache-Control": NO_CACHE}
        answer = self._http.get(f"{url}/metrics", timeout_seconds=_TIMEOUT_SECONDS, headers=headers)
        at = time.time()
        if cache := cached_by(answer.headers):
            raise NotKnownError(f"/metrics is answered by a cache ({cache})")
        if answer.status != 200:
            raise NotKnownError(f"/metrics answers HTTP {answer.status}")
        if page := page_in(answer.body):
            raise NotKnownError(f"/metrics answers {page}")
        return Scrape(at=at, samples=parse(answer.body, self._wanted))

    def figures(
        self, before: Round, now: Round, needed: Sequence[str], count: int
    ) -> dict[FigureName, Figure]:
        """Return the figures that two rounds make; `needed` are replicas that must be in both.

        `count` is how many there are.

        Raises:
            NotKnownError: one of those did not answer, or nobody did.
        """
        failed = {**before.failed, **now.failed}
        both = {
            name: (before.scrapes[name], s)
            for name, s in now.scrapes.items()
            if name in before.scrapes
        }
        lost = [
            f"{name}: {failed.get(name, 'it was not there before')}"
            for name in needed
            if name not in both
        ]
        if lost or not both:
            lost = lost or [f"{name}: {why}" for name, why in failed.items()]
            raise NotKnownError(
                f"/metrics of {of_total(len(both), count, 'replica')} is known"
                + (f"; {lost[0]}" if lost else "")
            )
        scrapes = Scrapes(
            up={("", name): ((was.at, 1.0), (is_.at, 1.0)) for name, (was, is_) in both.items()},
            start=max(was.at for was, _ in both.values()),
            end=max(is_.at for _, is_ in both.values()),
            started={
                ("", name): ((was.at, was.started), (is_.at, is_.started))
                for name, (was, is_) in both.items()
                if was.started and is_.started
            },
        )
        every = [series for name, pair in both.items() for series in _series(name, *pair)]
        replicas = counted(count, "replica")
        if len(both) < count:
            replicas = of_total(len(both), count, "replica")
        return server_figures(
            ServerSamples(
                scrapes=scrapes,
                series=every,
                requests=[series for series in every if self._counts(series)],
                counter=self._counter,
                source=f"/metrics of {replicas}",
                max_gap_seconds=math.inf,
                no_rates=_contradiction(scrapes, every),
            )
        )

    def _counts(self, series: Series) -> bool:
        return series.labels["__name__"] == self._counter.metric and all(
            re.fullmatch(pattern, series.labels.get(name, ""))
            for name, pattern in self._counter.matching.items()
        )


def parse(body: bytes, wanted: set[str]) -> dict[Labels, float]:
    """The samples of the wanted names in Prometheus' text format.

    Raises:
        NotKnownError: it is something else, or has a series twice.
    """
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[Labels, float] = {}
    names = 0
    try:
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                names += 1
                if sample.name not in wanted:
                    continue
                key = tuple(sorted({**sample.labels, "__name__": sample.name}.items()))
                if key in found:
                    raise NotKnownError(f"/metrics has a series of {sample.name} twice")
                found[key] = float(sample.value)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotKnownError(f"/metrics is not in Prometheus' text format: {error}") from error
    if not names:
        raise NotKnownError("/metrics is empty")
    return found


def _series(name: str, was: Scrape, now: Scrape) -> list[Series]:
    """The series of a server over both scrapes; none of a metric that is no number in one."""
    own = labels_of(("", name))
    pairs = ((was.at, was.samples), (now.at, now.samples))
    broken = {
        dict(labels)["__name__"]
        for _, samples in pairs
        for labels, value in samples.items()
        if not math.isfinite(value)
    }
    return [
        Series(
            {**dict(labels), **own},
            tuple((at, samples[labels]) for at, samples in pairs if labels in samples),
        )
        for labels in {**was.samples, **now.samples}
        if dict(labels)["__name__"] not in broken
    ]


def _contradiction(scrapes: Scrapes, every: Sequence[Series]) -> str:
    """Return why no increase between the two scrapes is known; empty where it is."""
    changed = [target for target in scrapes.started if scrapes.changes(target)]
    if changed:
        return f"{name_of(changed[0])} was restarted between the two scrapes"
    for series in every:
        metric, server = series.labels["__name__"], name_of(target_of(series))
        if not metric.endswith(_COUNTS):
            continue
        values = [value for _, value in series.samples]
        if values != sorted(values):
            return f"{metric} of {server} fell between the two scrapes: it was reset"
        if metric.endswith("_bucket") and len(values) == 1:
            return f"the buckets of {metric} of {server} are others at the second scrape"
    return ""
