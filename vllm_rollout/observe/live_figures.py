"""Figures of deployments as they run, from what is there to be asked.

Readiness and restarts are the platform's. Of the servers Prometheus is asked, and where it does not
know, their own `/metrics`; of pods and GPUs Prometheus, by what exporters say, and then the
platform. A figure that no source has says why each of them has not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures, Usage
from vllm_rollout.model.text import shown
from vllm_rollout.observe.pod_metrics import PodMetrics, Round
from vllm_rollout.observe.ramp_sides import Side, figures_of_platform, sides_of, words_of
from vllm_rollout.observe.scraped_figures import ScrapedFigures
from vllm_rollout.observe.server_figures import NotKnownError
from vllm_rollout.observe.usage_figures import usage_figures
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import Policy

_PAUSE_SECONDS = 3.0
"""Between the two scrapes of servers."""
_NO_PROMETHEUS = "no Prometheus (`prometheus.url` in the policy)"
_SOON_SECONDS = 1.0
"""Scrapes that are closer together show no rate."""
_SAME_CLOCK = timedelta(seconds=1)
"""So far a clock may drift from another and show the same difference."""
_NOTHING = Figure(unknown="not asked")
_OF_PODS = (
    FigureName.GPU_USE,
    FigureName.GPU_MEMORY,
    FigureName.CPU,
    FigureName.MEMORY,
    FigureName.NETWORK_IN,
    FigureName.NETWORK_OUT,
)
_OF_SERVERS = tuple(
    name for name in FigureName if name not in (*_OF_PODS, FigureName.READY, FigureName.RESTARTS)
)
_WITHOUT_REQUESTS = (
    FigureName.INPUT_TOKEN_RATE,
    FigureName.OUTPUT_TOKEN_RATE,
    FigureName.QUEUE,
    FigureName.RUNNING,
    FigureName.KV_CACHE,
)
"""What servers say whether they are asked anything or not."""

Found = Mapping[FigureName, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One scrape of the servers, and what they used then."""

    at: float
    metrics: Round
    usage: Usage

    @property
    def goes_on(self) -> bool:
        """True if a second reading shows more than this one."""
        used = self.usage.replicas.values()
        return bool(self.metrics.names) or any(each.cpu_seconds is not None for each in used)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A side that the platform is asked about and, with `scrape`, its servers."""

    side: Side
    scrape: bool

    @property
    def key(self) -> str:
        """Tells the sides of one platform apart."""
        deployment = self.side.deployment
        return f"{deployment.namespace}/{deployment.release}/{self.side.name}"

    @property
    def servers(self) -> list[Replica]:
        """The replicas to scrape."""
        return [r for r in self.side.replicas or () if self.scrape and not r.follower]


class LiveFigures:
    """Reads the figures of deployments. Close it in the end, or use it as a context manager.

    `policy` is the model's own. Servers are scraped twice, `pause_seconds` apart; who reads again
    later waits for no second scrape: the last one is the first of the next pair.
    """

    def __init__(
        self, policy: Policy, platform: ReleaseReader, *, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self._policy, self._platform = policy, platform
        self._pause_seconds = pause_seconds
        self._last: dict[str, _Reading] = {}
        self._ahead = timedelta.max
        self._servers = PodMetrics(policy.prometheus.requests)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def read(
        self, deployment: Deployment, *, window: timedelta, now: datetime
    ) -> list[SideFigures]:
        """Return the figures of each side of the deployment; none where there is no release.

        Does not raise for a source that does not answer: each figure says why it is unknown.
        """
        sides = sides_of(deployment, self._policy, self._platform)
        scraped = [self._by_prometheus(side, window) for side in sides]
        asked = [_left_to_ask(side, found) for side, found in zip(sides, scraped, strict=True)]
        readings = self._readings([each for each in asked if each], window)
        return [
            SideFigures(
                environment=deployment.environment,
                revision=side.revision,
                side=side.name,
                figures=_merged(
                    [
                        figures_of_platform(side, self._platform.name, now),
                        by_prometheus,
                        *(self._by_replicas(own, *readings[own.key], now) if own else ()),
                    ]
                ),
            )
            for side, by_prometheus, own in zip(sides, scraped, asked, strict=True)
        ]

    def _by_prometheus(self, side: Side, window: timedelta) -> Found:
        try:
            metrics = ScrapedFigures.of(self._policy, side.deployment, lambda: side.replicas)
        except UnreachableError as error:
            return dict.fromkeys(FigureName, Figure(unknown=words_of(error)))
        if metrics is None:
            return {}
        metrics.only = side.replicas if side.alone else None
        metrics.others = side.others
        with ExitStack() as stack:
            stack.callback(metrics.close)
            try:
                ahead = self._ahead_of_here(metrics.now)
                named = side.replicas
                pods = [r.name for r in named] if named is not None else metrics.pods_scraped()
                needed = [r.name for r in side.needed] if named is not None else pods
                namespace = side.deployment.namespace
                found = metrics.pods(pods, needed, namespace, window)
            except UnreachableError as error:
                return dict.fromkeys(FigureName, Figure(unknown=words_of(error)))
            try:
                found |= metrics.servers(window)
            except (NotKnownError, UnreachableError) as error:
                why = Figure(unknown=words_of(error))
                found |= dict.fromkeys(_OF_SERVERS, why)
        return {
            # Times are those of this machine's clock.
            name: replace(figure, at=figure.at - ahead) if figure.at else figure
            for name, figure in found.items()
        }

    def _ahead_of_here(self, ask: Callable[[], datetime]) -> timedelta:
        """By how much the clock that is asked is ahead of this machine's.

        However long each answer takes it is the same, so that a sample read twice has one time.
        """
        before = datetime.now(UTC)
        then = ask()
        least, most = then - datetime.now(UTC), then - before
        if not least - _SAME_CLOCK <= self._ahead <= most + _SAME_CLOCK:
            self._ahead = (least + most) / 2
        return self._ahead

    def _by_replicas(
        self, asked: _Asked, before: _Reading, newest: _Reading, now: datetime
    ) -> list[Found]:
        side = asked.side
        names = [replica.name for replica in side.replicas or ()]
        ready = {replica.name for replica in side.needed}
        found: list[Found] = [usage_figures(names, ready, before.usage, newest.usage, now)]
        if asked.scrape:
            needed = [replica.name for replica in side.needed if not replica.follower]
            try:
                found.append(
                    self._servers.figures(
                        before.metrics, newest.metrics, needed, len(asked.servers)
                    )
                )
            except NotKnownError as error:
                found.append(dict.fromkeys(_OF_SERVERS, Figure(unknown=str(error))))
        return found

    def _readings(
        self, asked: Sequence[_Asked], window: timedelta
    ) -> dict[str, tuple[_Reading, _Reading]]:
        """Two readings of each side; those of a ramp's sides at the same time."""
        longest = max(window.total_seconds(), self._pause_seconds)
        last = {each.key: self._last.get(each.key) for each in asked}
        before = {
            each.key: reading
            for each in asked
            if (reading := last[each.key])
            and _SOON_SECONDS <= time.monotonic() - reading.at <= longest
            and reading.metrics.names == {replica.name for replica in each.servers}
        }
        if len(before) < len(asked):
            before = {each.key: self._take(each) for each in asked}
            if not any(reading.goes_on for reading in before.values()):
                return {key: (reading, reading) for key, reading in before.items()}
            time.sleep(self._pause_seconds)
        newest = {each.key: self._take(each) for each in asked}
        self._last |= newest
        return {key: (before[key], reading) for key, reading in newest.items()}

    def _take(self, asked: _Asked) -> _Reading:
        deployment = asked.side.deployment
        errors = self._platform.path_errors(deployment)
        at = time.monotonic()
        metrics = self._servers.scrape(
            asked.servers, lambda each: self._platform.replica_url(deployment, each)
        )
        newest = self._platform.path_errors(deployment)
        if newest.count != errors.count:
            # A tunnel that is refused is closed, and only the path knows why.
            metrics = replace(metrics, failed=dict.fromkeys(metrics.failed, newest.what))
        return _Reading(at=at, metrics=metrics, usage=self._platform.usage(deployment))


def _left_to_ask(side: Side, found: Found) -> _Asked | None:
    """Return the questions that Prometheus left open about a side, None where there are none."""
    servers = all(found.get(name, _NOTHING).value is not None for name in _WITHOUT_REQUESTS)
    pods = all(found.get(name, _NOTHING).value is not None for name in _OF_PODS)
    if side.replicas is None or (servers and pods):
        return None
    return _Asked(side=side, scrape=not servers)


def _merged(sources: Sequence[Found]) -> dict[FigureName, Figure]:
    return {name: _first(name, sources) for name in FigureName}


def _first(name: FigureName, sources: Sequence[Found]) -> Figure:
    """The figure of the first source that has it, else why none has."""
    found = [source[name] for source in sources if name in source]
    known = next((figure for figure in found if figure.value is not None), None)
    if known:
        return replace(known, source=shown(known.source))
    reasons = dict.fromkeys(figure.unknown for figure in found)
    return Figure(unknown=shown("; ".join(reasons) or _NO_PROMETHEUS))
