"""Figures of one side of a deployment from Prometheus: of its servers, its pods and its GPUs."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.units import counted
from vllm_rollout.observe.deployment_metrics import why_unknown
from vllm_rollout.observe.missing_servers import is_of
from vllm_rollout.observe.pod_figures import (
    CADVISOR,
    DCGM,
    EXPORTED,
    KUBE_STATE,
    Exporter,
    PodSamples,
    pod_figures,
)
from vllm_rollout.observe.prometheus import Series, selector
from vllm_rollout.observe.scraped_deployment import ScrapedDeployment
from vllm_rollout.observe.series import target_of
from vllm_rollout.observe.server_figures import (
    METRICS,
    NotKnownError,
    ServerSamples,
    server_figures,
)
from vllm_rollout.policy.prometheus import PodLabels

_FEWEST_SCRAPES = timedelta(minutes=3)
"""Exporters are scraped every minute at least; so far back there are two samples."""


class ScrapedFigures(ScrapedDeployment):
    """Figures of a deployment, or of some of its replicas.

    With `only`, samples are those of targets that are one of these replicas, by name or address,
    whatever else has their labels. Without, those of `others` are left out where targets tell.
    """

    only: Sequence[Replica] | None = None
    others: Sequence[Replica] = ()

    def servers(self, window: timedelta) -> dict[FigureName, Figure]:
        """Return the figures of the servers' own metrics in the window.

        Raises:
            NotKnownError: nothing is known of the servers.
            UnreachableError: no answer.
        """
        now = self.now()
        end = datetime.fromtimestamp(self.newest(now, window).at, UTC)
        known = self._known_up[2] if self._known_up else []
        first = min((series.samples[0][0] for series in known if series.samples), default=0.0)
        # A Prometheus that began later has nothing to say of the time before.
        start = max(end - window, datetime.fromtimestamp(first, UTC))
        if not end > start:
            raise NotKnownError(self._no_target() if not known else "no two scrapes yet")
        scrapes, doubt = self._scrapes(start, end)
        longest = self._rules.max_gap_seconds
        if unknown := why_unknown(scrapes, scrapes.gaps(longest), doubt):
            raise NotKnownError(self._no_target() if not scrapes.up else unknown)
        every = selector("", self._labels, {"__name__": "|".join(METRICS)})
        counter, labels = self._rules.requests, self._counter_labels()
        restarts = sum(map(len, map(scrapes.changes, scrapes.started)))
        return server_figures(
            ServerSamples(
                scrapes=scrapes,
                series=self._series(every, scrapes),
                requests=self._series(selector(counter.metric, labels, counter.matching), scrapes),
                counter=counter,
                source="Prometheus" + f", over {counted(restarts, 'restart')}" * bool(restarts),
                max_gap_seconds=longest,
            )
        )

    def pods(
        self, pods: Collection[str], needed: Collection[str], namespace: str, window: timedelta
    ) -> dict[FigureName, Figure]:
        """Return the figures that exporters have of the pods; see `PodSamples`.

        Raises:
            UnreachableError: no answer.
        """
        now = self.now()
        begin = now - max(window, _FEWEST_SCRAPES)
        rules = self._rules

        def exporter(name: str, key: str, metrics: Sequence[str]) -> Exporter:
            labels: PodLabels = getattr(rules, key)
            every = self._of_pods(metrics, labels, pods, begin, now)
            found = Exporter(name=name, key=f"prometheus.{key}", labels=labels, series=every)
            own = [s for s in every if found.label(s, labels.namespace) == namespace]
            return replace(found, series=own)

        return pod_figures(
            PodSamples(
                pods=pods,
                needed=needed,
                cadvisor=exporter("cAdvisor", "cadvisor", CADVISOR),
                dcgm=exporter("DCGM exporter", "dcgm", DCGM),
                kube_state=exporter("kube-state-metrics", "kube_state_metrics", KUBE_STATE),
                end=now.timestamp(),
                max_gap_seconds=rules.max_gap_seconds,
            )
        )

    def pods_scraped(self) -> list[str]:
        """Return the pods that targets of the deployment are, by the label with a pod's name."""
        now = self.now()
        label = self._rules.cadvisor.pod
        up = self._samples(selector("up", self._labels), now - self._rules.max_gap, now)
        return sorted({pod for series in up if (pod := series.labels.get(label))})

    def _of_pods(
        self,
        metrics: Sequence[str],
        labels: PodLabels,
        pods: Collection[str],
        begin: datetime,
        end: datetime,
    ) -> list[Series]:
        found: dict[frozenset[tuple[str, str]], Series] = {}
        names = "|".join(metrics)
        own = "|".join(re.escape(pod) for pod in sorted(pods))
        for before in (EXPORTED, ""):
            pattern = {"__name__": names, before + labels.pod: own}
            asked = selector("", self._fill(labels.labels), pattern)
            for series in super()._samples(asked, begin, end) if pods else ():
                found[frozenset(series.labels.items())] = series
        return list(found.values())

    def _samples(self, promql: str, begin: datetime, end: datetime) -> list[Series]:
        return [each for each in super()._samples(promql, begin, end) if self._is_ours(each)]

    def _is_ours(self, series: Series) -> bool:
        ours = self.others if self.only is None else self.only
        target, values = target_of(series), series.labels.values()
        found = any(is_of(replica, target, values) for replica in ours)
        return found is (self.only is not None)

    def _no_target(self) -> str:
        if self.only is None:
            return "Prometheus knows no target with the deployment's labels (`prometheus.labels`)"
        return "no target in Prometheus has the name or the address of one of these replicas"
