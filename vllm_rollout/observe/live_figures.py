"""Figures of deployments as they run, from what is there to be asked.

Readiness and restarts are the platform's. Of the servers Prometheus is asked, and where it does not
know, their own `/metrics`; of pods and GPUs Prometheus, by what exporters say, and then the
platform. A figure that no source has says why each of them has not.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from vllm_rollout.model.deployment import Deployment, Replica, Revision, newest_served
from vllm_rollout.model.errors import RolloutError, UnreachableError, UsageError
from vllm_rollout.model.live_figures import Figure, FigureName, SideFigures, Usage
from vllm_rollout.model.text import shown
from vllm_rollout.observe.pod_metrics import PodMetrics, Round
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

Found = Mapping[FigureName, Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """Some replicas of a release. `replicas` is None where the platform does not say.

    `alone` are those that only their names and addresses tell from `others`: both have the
    release's labels.
    """

    deployment: Deployment
    replicas: Sequence[Replica] | None
    revision: int | None = None
    name: str = ""
    others: Sequence[Replica] = ()
    alone: bool = False
    wanted: int = 0
    unknown: str = ""

    @property
    def needed(self) -> list[Replica]:
        """The replicas without which no sum is one."""
        return [replica for replica in self.replicas or () if replica.ready]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One scrape of the servers, and what they used then."""

    at: float
    metrics: Round
    usage: Usage


class LiveFigures:
    """Reads the figures of deployments. Close it in the end, or use it as a context manager.

    Servers are scraped twice, `pause_seconds` apart; who reads again after that long waits for no
    second scrape: the last one is the first of the next pair.
    """

    def __init__(
        self, policy: Policy, platform: ReleaseReader, *, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self._policy, self._platform = policy, platform
        self._pause_seconds = pause_seconds
        self._last: dict[str, _Reading] = {}
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
        return [
            SideFigures(
                environment=deployment.environment,
                revision=side.revision,
                side=side.name,
                figures=self._figures(side, window, now),
            )
            for side in self._sides(deployment)
        ]

    def _sides(self, deployment: Deployment) -> list[_Side]:
        try:
            replicas = self._platform.replicas(deployment)
            canaries = self._canaries(deployment)
        except RolloutError as error:
            return [_Side(deployment=deployment, replicas=None, unknown=_words(error))]
        history = self._history(deployment)
        newest = newest_served(history)
        if not replicas and not history:
            return []
        whole = _Side(
            deployment=deployment,
            replicas=replicas,
            revision=newest.number if newest else None,
            wanted=newest.capacity if newest else 0,
        )
        if canaries:
            beside = newest_served(self._history(deployment.canary))
            labels = self._policy.for_model(deployment.model).prometheus.labels.values()
            alone = not any("{release}" in (value or "") for value in labels)
            return [
                replace(whole, name="baseline", others=canaries, alone=alone),
                _Side(
                    deployment=deployment.canary,
                    replicas=canaries,
                    revision=beside.number if beside else None,
                    name="canary",
                    others=replicas,
                    alone=alone,
                    wanted=beside.capacity if beside else 0,
                ),
            ]
        if newest is None or newest.complete:
            return [whole]
        return _ramp_by_replicas(whole, newest, history) or [whole]

    def _canaries(self, deployment: Deployment) -> Sequence[Replica]:
        try:
            canary = deployment.canary
        except UsageError:  # a name that is too long has none
            return []
        return self._platform.replicas(canary)

    def _history(self, deployment: Deployment) -> Sequence[Revision]:
        try:
            return self._platform.history(deployment)
        except RolloutError:
            return []

    def _figures(self, side: _Side, window: timedelta, now: datetime) -> dict[FigureName, Figure]:
        prometheus = self._by_prometheus(side, window, now)
        servers = any(prometheus.get(name, _NOTHING).value is not None for name in _OF_SERVERS)
        pods = all(prometheus.get(name, _NOTHING).value is not None for name in _OF_PODS)
        sources: list[Found] = [_by_platform(side, self._platform.name), prometheus]
        if side.replicas is not None and not (servers and pods):
            sources += self._by_replicas(side, window, now, scrape=not servers)
        return {name: _first(name, sources) for name in FigureName}

    def _by_prometheus(self, side: _Side, window: timedelta, now: datetime) -> Found:
        try:
            metrics = ScrapedFigures.of(self._policy, side.deployment, lambda: side.replicas)
        except UnreachableError as error:
            return dict.fromkeys(FigureName, Figure(unknown=_words(error)))
        if metrics is None:
            return {}
        metrics.only = side.replicas if side.alone else None
        metrics.others = side.others
        with ExitStack() as stack:
            stack.callback(metrics.close)
            try:
                ahead = metrics.now() - now
                named = side.replicas
                pods = [r.name for r in named] if named is not None else metrics.pods_scraped()
                needed = [r.name for r in side.needed] if named is not None else pods
                namespace = side.deployment.namespace
                found = metrics.pods(pods, needed, namespace, window)
            except UnreachableError as error:
                return dict.fromkeys(FigureName, Figure(unknown=_words(error)))
            try:
                found |= metrics.servers(window)
            except (NotKnownError, UnreachableError) as error:
                why = Figure(unknown=_words(error))
                found |= dict.fromkeys(_OF_SERVERS, why)
        return {
            # Times are those of the clock of who asks.
            name: replace(figure, at=figure.at - ahead) if figure.at else figure
            for name, figure in found.items()
        }

    def _by_replicas(
        self, side: _Side, window: timedelta, now: datetime, *, scrape: bool
    ) -> list[Found]:
        before, newest = self._pair(side, window, scrape=scrape)
        names = [replica.name for replica in side.replicas or ()]
        ready = {replica.name for replica in side.needed}
        found: list[Found] = [usage_figures(names, ready, before.usage, newest.usage, now)]
        if scrape:
            servers = [r for r in side.replicas or () if not r.follower]
            needed = [replica.name for replica in side.needed if not replica.follower]
            try:
                found.append(
                    self._servers.figures(before.metrics, newest.metrics, needed, len(servers))
                )
            except NotKnownError as error:
                found.append(dict.fromkeys(_OF_SERVERS, Figure(unknown=str(error))))
        return found

    def _pair(self, side: _Side, window: timedelta, *, scrape: bool) -> tuple[_Reading, _Reading]:
        deployment = side.deployment
        replicas = [r for r in side.replicas or () if scrape and not r.follower]
        key = f"{deployment.namespace}/{deployment.release}/{side.name}"

        def take() -> _Reading:
            return _Reading(
                at=time.monotonic(),
                metrics=self._servers.scrape(
                    replicas, lambda each: self._platform.replica_url(deployment, each)
                ),
                usage=self._platform.usage(deployment),
            )

        before = self._last.get(key)
        ago = time.monotonic() - before.at if before else 0.0
        if (
            before is None
            or not _SOON_SECONDS <= ago <= max(window.total_seconds(), self._pause_seconds)
            or before.metrics.names != {replica.name for replica in replicas}
        ):
            before = take()
            measured = any(u.cpu_seconds is not None for u in before.usage.replicas.values())
            if not replicas and not measured:
                return before, before
            time.sleep(self._pause_seconds)
        self._last[key] = newest = take()
        return before, newest


def _ramp_by_replicas(whole: _Side, newest: Revision, history: Sequence[Revision]) -> list[_Side]:
    """The two sides of a release some of whose replicas run another build than the others."""
    replicas = whole.replicas or ()
    new = [replica for replica in replicas if replica.build == newest.build.digest]
    old = [replica for replica in replicas if replica not in new]
    if not new or not old:
        return []
    builds = {replica.build for replica in old}
    before = [r.number for r in history if r.number < newest.number and r.build.digest in builds]
    return [
        replace(
            whole,
            replicas=old,
            revision=max(before, default=None),
            name="baseline",
            others=new,
            alone=True,
            wanted=newest.capacity - newest.replicas,
        ),
        replace(whole, replicas=new, name="canary", others=old, alone=True, wanted=newest.replicas),
    ]


def _by_platform(side: _Side, source: str) -> Found:
    """Readiness and restarts, as the platform has them."""
    if side.replicas is None:
        return dict.fromkeys(FigureName, Figure(unknown=side.unknown))
    serving = [replica for replica in side.replicas if not replica.follower]
    ready = sum(replica.ready for replica in serving)
    restarts = sum(replica.restarts for replica in side.replicas)
    whole = max(len(serving), side.wanted)
    return {
        FigureName.READY: Figure(value=float(ready), of=float(whole), source=source),
        FigureName.RESTARTS: Figure(value=float(restarts), source=source),
    }


def _first(name: FigureName, sources: Sequence[Found]) -> Figure:
    """The figure of the first source that has it, else why none has."""
    found = [source[name] for source in sources if name in source]
    known = next((figure for figure in found if figure.value is not None), None)
    if known:
        return replace(known, source=shown(known.source))
    reasons = dict.fromkeys(figure.unknown for figure in found)
    return Figure(unknown=shown("; ".join(reasons) or _NO_PROMETHEUS))


def _words(error: Exception) -> str:
    remedy = getattr(error, "remedy", "")
    return f"{error}. {remedy}" if remedy else str(error)
