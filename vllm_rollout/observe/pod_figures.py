"""Figures of pods from what exporters say of them in Prometheus.

cAdvisor (`container_…`) has CPU, memory and network, the DCGM exporter (`DCGM_FI_…`) GPUs, and
kube-state-metrics (`kube_pod_…`) readiness, restarts and limits. Each container, interface and GPU
is counted once; what is there several times at once is not known.
"""

import statistics
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise

from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.model.units import of_total
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.observe.server_figures import NotKnownError, known_or_not
from vllm_rollout.policy.prometheus import PodLabels

EXPORTED = "exported_"
"""Prometheus puts it before a label of an exporter that the target has, too."""
CADVISOR = (
    _CPU := "container_cpu_usage_seconds_total",
    _MEMORY := "container_memory_working_set_bytes",
    _RECEIVED := "container_network_receive_bytes_total",
    _SENT := "container_network_transmit_bytes_total",
)
DCGM = (
    _GPU := "DCGM_FI_DEV_GPU_UTIL",
    _ENGINE := "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    _USED := "DCGM_FI_DEV_FB_USED",
    _FREE := "DCGM_FI_DEV_FB_FREE",
)
"""Of a part of a GPU (MIG) there is no utilization, and its engine's activity in its place."""
KUBE_STATE = (
    _READY := "kube_pod_status_ready",
    _RESTARTS := "kube_pod_container_status_restarts_total",
    _LIMITS := "kube_pod_container_resource_limits",
)
_POD_ITSELF = {"", "POD"}
"""Containers of the pod as a whole: its sum, and the one that holds its network."""
_OF_ONE_RUN = {"id", "name", "image", "image_id", "container_id", "uid"}
"""Labels in which a container differs from the one that was there before it was restarted."""
_MIB = 2.0**20
_BLANK = 0x7FFFFFF0
"""DCGM's figures from here on say that there is none."""
_INTERVALS = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """Series of an exporter that name the pods, and how: `key` is where the policy has it."""

    name: str
    key: str
    labels: PodLabels
    series: Sequence[Series]

    def label(self, series: Series, name: str) -> str:
        """A label of the exporter's own, whatever the target is called."""
        return series.labels.get(EXPORTED + name) or series.labels.get(name, "")

    def pod(self, series: Series) -> str:
        """The pod that a series is about."""
        return self.label(series, self.labels.pod)

    def container(self, series: Series) -> str:
        """The container that a series is about; empty for the pod as a whole."""
        return self.label(series, self.labels.container)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSamples:
    """Samples of some pods up to `end`, the time of Prometheus.

    Without those of each of `needed` no figure is known; other `pods` may have ended, or have not
    begun yet.
    """

    pods: Collection[str]
    needed: Collection[str]
    cadvisor: Exporter
    dcgm: Exporter
    kube_state: Exporter
    end: float
    max_gap_seconds: float


def pod_figures(samples: PodSamples) -> dict[FigureName, Figure]:
    """Return the figures that exporters have of the pods."""
    pods = _Pods(samples)
    ways: dict[FigureName, Callable[[], Figure]] = {
        FigureName.READY: pods.ready,
        FigureName.RESTARTS: pods.restarts,
        FigureName.GPU_USE: pods.gpu_use,
        FigureName.GPU_MEMORY: pods.gpu_memory,
        FigureName.CPU: partial(pods.of_containers, _CPU, "cpu"),
        FigureName.MEMORY: partial(pods.of_containers, _MEMORY, "memory"),
        FigureName.NETWORK_IN: partial(pods.network, _RECEIVED),
        FigureName.NETWORK_OUT: partial(pods.network, _SENT),
    }
    return {name: known_or_not(way) for name, way in ways.items()}


class _Pods:
    """The figures of some pods. Each method raises NotKnownError where its figure is not known."""

    def __init__(self, samples: PodSamples) -> None:
        self._samples = samples

    def ready(self) -> Figure:
        """How many of the pods are ready."""
        exporter = self._samples.kube_state
        found = [s for s in self._fresh(exporter, _READY) if s.labels.get("condition") == "true"]
        each = self._once(exporter, found, exporter.pod)
        count = sum(series.samples[-1][1] == 1 for series in each)
        return self._figure(exporter, _READY, each, float(count), of=float(len(each)))

    def restarts(self) -> Figure:
        """How often containers were restarted, over all of the pods' lives."""
        exporter = self._samples.kube_state
        each = self._once(
            exporter,
            self._fresh(exporter, _RESTARTS),
            lambda s: (exporter.pod(s), exporter.container(s)),
        )
        return self._figure(exporter, _RESTARTS, each, sum(s.samples[-1][1] for s in each))

    def of_containers(self, metric: str, resource: str) -> Figure:
        """The CPU (in cores) or the memory (in bytes) of all containers, and their limits."""
        exporter = self._samples.cadvisor
        found = self._fresh(exporter, metric)
        own = [s for s in found if exporter.container(s) not in _POD_ITSELF]
        # Of standalone cAdvisors there may be the sums of pods alone.
        own = own or [s for s in found if not exporter.container(s) and not s.labels.get("image")]
        if any(series.labels.get("cpu") == "total" for series in own):
            own = [series for series in own if series.labels.get("cpu") == "total"]
        each = self._once(
            exporter,
            own,
            lambda s: (exporter.pod(s), exporter.container(s), s.labels.get("cpu")),
        )
        value = sum(map(self._per_second if metric == _CPU else _newest, each))
        limit = self._limit({(exporter.pod(s), exporter.container(s)) for s in each}, resource)
        return self._figure(exporter, metric, each, value, of=limit)

    def network(self, metric: str) -> Figure:
        """Bytes in a second over all interfaces of the pods, each counted once."""
        exporter = self._samples.cadvisor
        found = self._fresh(exporter, metric)
        # The containers of a pod have one network: of the pod itself, or of one of them, is of all.
        own: dict[str, tuple[bool, str]] = {}

        def container(series: Series) -> tuple[bool, str]:
            name = exporter.container(series)
            return name not in _POD_ITSELF, name

        for series in sorted(found, key=container):
            own.setdefault(exporter.pod(series), container(series))
        found = [series for series in found if container(series) == own[exporter.pod(series)]]
        each = self._once(exporter, found, lambda s: (exporter.pod(s), s.labels.get("interface")))
        interfaces = sorted({series.labels.get("interface", "") for series in each} - {""})
        value = sum(map(self._per_second, each))
        return self._figure(exporter, metric, each, value, more=", ".join(interfaces))

    def gpu_use(self) -> Figure:
        """The mean use of the GPUs, a share."""
        exporter = self._samples.dcgm
        found, full = self._fresh(exporter, _GPU), 100.0
        if not found:
            found, full = self._fresh(exporter, _ENGINE), 1.0
        each = self._once(exporter, found, self._gpu)
        if not all(0 <= series.samples[-1][1] <= full for series in each):
            raise NotKnownError(f"{exporter.name} has a use of a GPU that is no share")
        value = statistics.fmean(map(_newest, each)) / full if each else 0.0
        return self._figure(exporter, _GPU, each, value)

    def gpu_memory(self) -> Figure:
        """The used memory of the GPUs in bytes, of all that there is to use."""
        exporter = self._samples.dcgm
        used, free = (
            self._once(exporter, self._fresh(exporter, metric), self._gpu)
            for metric in (_USED, _FREE)
        )
        if any(not 0 <= series.samples[-1][1] < _BLANK for series in (*used, *free)):
            raise NotKnownError(f"{exporter.name} has no memory of a GPU")
        value = sum(map(_newest, used)) * _MIB
        whole = value + sum(map(_newest, free)) * _MIB
        known = set(map(self._gpu, used)) == set(map(self._gpu, free))
        return self._figure(exporter, _USED, used, value, of=whole if known else None)

    def _gpu(self, series: Series) -> Hashable:
        """Return what tells a GPU, or a part of one, from others."""
        label = partial(self._samples.dcgm.label, series)
        return label("UUID") or (label("Hostname"), label("gpu")), label("GPU_I_ID")

    def _limit(self, containers: Collection[tuple[str, str]], resource: str) -> float | None:
        """The sum of the containers' limits; None where one of them has none."""
        exporter = self._samples.kube_state
        found = [s for s in self._fresh(exporter, _LIMITS) if s.labels.get("resource") == resource]

        def container(series: Series) -> tuple[str, str]:
            return exporter.pod(series), exporter.container(series)

        try:
            each = {container(s): _newest(s) for s in self._once(exporter, found, container)}
        except NotKnownError:
            return None
        limits = [each.get(container) for container in containers]
        known = [limit for limit in limits if limit is not None]
        return sum(known) if known and len(known) == len(limits) else None

    def _fresh(self, exporter: Exporter, metric: str) -> list[Series]:
        """The series of a metric whose newest sample is no older than scrapes explain.

        Of a pod none that ended before another began: it had the same name, and is gone.
        """
        found = [
            series
            for series in exporter.series
            if series.labels.get("__name__") == metric and series.samples
            if exporter.pod(series) in self._samples.pods
            if self._samples.end - series.samples[-1][0] <= self._longest(series)
        ]
        begins: dict[str, float] = {}
        for series in found:
            pod = exporter.pod(series)
            begins[pod] = max(begins.get(pod, 0.0), series.samples[0][0])
        return [s for s in found if s.samples[-1][0] >= begins[exporter.pod(s)]]

    def _longest(self, series: Series) -> float:
        apart = [later - earlier for (earlier, _), (later, _) in pairwise(series.samples)]
        usual = statistics.median(apart) if apart else 0.0
        return max(self._samples.max_gap_seconds, _INTERVALS * usual)

    def _once(
        self, exporter: Exporter, found: Iterable[Series], key: Callable[[Series], Hashable]
    ) -> list[Series]:
        """One series for each key: of one that was restarted the newest."""
        by_key: dict[Hashable, list[Series]] = {}
        for series in found:
            by_key.setdefault(key(series), []).append(series)
        return [_newest_of(each, exporter) for each in by_key.values()]

    def _per_second(self, series: Series) -> float:
        """A counter's increase in a second, since it was reset last."""
        began = max(
            (n for n, (was, now) in enumerate(pairwise(series.samples), 1) if now[1] < was[1]),
            default=0,
        )
        since = series.samples[began:]
        if len(since) < 2:
            raise NotKnownError(
                f"{self._name(series)} has one sample of {series.labels['__name__']} in this time"
                f"{' since it was reset' * bool(began)}"
            )
        return (since[-1][1] - since[0][1]) / (since[-1][0] - since[0][0])

    def _name(self, series: Series) -> str:
        return self._samples.cadvisor.pod(series)

    def _figure(
        self,
        exporter: Exporter,
        metric: str,
        each: Sequence[Series],
        value: float,
        *,
        of: float | None = None,
        more: str = "",
    ) -> Figure:
        having = {exporter.pod(series) for series in each}
        if not having:
            raise NotKnownError(
                f"no new series of {metric} has the pods' names (`{exporter.key}` in the policy)"
            )
        if missing := sorted(set(self._samples.needed) - having):
            raise NotKnownError(f"{missing[0]} has no new series of {metric}")
        every = len(self._samples.pods)
        part = of_total(len(having), every, "pod") if len(having) < every else ""
        source = ", ".join(filter(None, [f"{exporter.name} by Prometheus", more, part]))
        at = datetime.fromtimestamp(min(series.samples[-1][0] for series in each), UTC)
        return Figure(value=value, of=of, source=source, at=at)


def _newest(series: Series) -> float:
    return series.samples[-1][1]


def _newest_of(several: Sequence[Series], exporter: Exporter) -> Series:
    """The newest of some series that follow each other.

    Raises:
        NotKnownError: there are several at once.
    """
    newest = max(several, key=lambda series: series.samples[0][0])
    at_once = [s for s in several if s.samples[-1][0] >= newest.samples[0][0]]
    names = {name for series in at_once for name in series.labels} - _OF_ONE_RUN
    differing = sorted(n for n in names if len({s.labels.get(n) for s in at_once}) > 1)
    if differing:
        values = sorted({s.labels.get(differing[0], "none") for s in at_once})
        raise NotKnownError(
            f"{exporter.pod(newest)} has {len(at_once)} series of "
            f"{newest.labels['__name__']} at once, which differ in {', '.join(differing)} "
            f"({', '.join(values)}): name the right one in `{exporter.key}.labels`"
        )
    return newest
