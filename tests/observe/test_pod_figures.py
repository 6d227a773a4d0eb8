"""What exporters say of pods: containers, interfaces and GPUs count once, and only if new."""

from collections.abc import Iterable
from typing import Any

import pytest

from vllm_rollout.model.live_figures import Figure, FigureName
from vllm_rollout.observe.pod_figures import Exporter, PodSamples, pod_figures
from vllm_rollout.observe.prometheus import Series
from vllm_rollout.policy import load_policy

T = 1_795_432_000.0
LABELS = load_policy(None).prometheus
CPU, MEMORY = "container_cpu_usage_seconds_total", "container_memory_working_set_bytes"
GPU, USED, FREE = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"


def series(metric: str, *values: float, until: float = T, **labels: str) -> Series:
    """One sample each 30 s up to then."""
    first = until - 30 * (len(values) - 1)
    samples = tuple((first + 30 * n, value) for n, value in enumerate(values))
    return Series({"__name__": metric, "pod": "a", "container": "vllm", **labels}, samples)


def figures(
    cadvisor: Iterable[Series] = (),
    dcgm: Iterable[Series] = (),
    kube_state: Iterable[Series] = (),
    *,
    pods: tuple[str, ...] = ("a",),
    needed: tuple[str, ...] = ("a",),
) -> dict[FigureName, Figure]:
    def exporter(name: str, key: str, found: Iterable[Series]) -> Exporter:
        labels = getattr(LABELS, key)
        return Exporter(name=name, key=f"prometheus.{key}", labels=labels, series=[*found])

    return pod_figures(
        PodSamples(
            pods=pods,
            needed=needed,
            cadvisor=exporter("cAdvisor", "cadvisor", cadvisor),
            dcgm=exporter("DCGM exporter", "dcgm", dcgm),
            kube_state=exporter("kube-state-metrics", "kube_state_metrics", kube_state),
            end=T,
            max_gap_seconds=60,
        )
    )


def test_a_restarted_container_counts_since_its_own_start() -> None:
    before = series(CPU, 100, 130, 160, until=T - 30, id="/one")
    since = series(CPU, 0, 15, id="/two")
    assert figures([before, since])[FigureName.CPU].value == 0.5
    fell = series(CPU, 100, 130, 3, 33, 63)
    assert figures([fell])[FigureName.CPU].value == 1.0
    (found,) = {figures([series(CPU, 100, 130, 3)])[FigureName.CPU].unknown}
    assert "one sample" in found
    assert "since it was reset" in found


@pytest.mark.parametrize("label", ["prometheus_replica", "cluster", "job"])
def test_what_is_scraped_twice_is_not_counted_twice(label: str) -> None:
    twice = [
        each
        for value in ("a", "b")
        for each in (
            series(MEMORY, 5, 5, **{label: value}),
            series(GPU, 50, UUID="GPU-1", **{label: value}),
        )
    ]
    found = figures(twice, twice)
    for name in (FigureName.MEMORY, FigureName.GPU_USE):
        assert f"differ in {label} (a, b)" in found[name].unknown
    assert "`prometheus.dcgm.labels`" in found[FigureName.GPU_USE].unknown


def test_a_restarted_exporter_goes_on_where_it_ended() -> None:
    before = series(MEMORY, 5, 5, until=T - 45, instance="10.0.0.1:8080")
    now = series(MEMORY, 7, instance="10.0.0.2:8080")
    assert figures([before, now])[FigureName.MEMORY].value == 7


def test_stale_samples_are_no_figures() -> None:
    old = series(MEMORY, 5, 5, until=T - 120)
    assert "no new series" in figures([old])[FigureName.MEMORY].unknown
    # One that is scraped every two minutes is new for five.
    rare = Series(old.labels, ((T - 360, 5.0), (T - 240, 5.0), (T - 120, 5.0)))
    found = figures([rare])[FigureName.MEMORY]
    assert found.value == 5
    assert found.at is not None
    assert found.at.timestamp() == T - 120


def test_a_ready_pod_without_series_makes_the_sum_unknown() -> None:
    one = [series(MEMORY, 5)]
    found = figures(one, pods=("a", "b"), needed=("a", "b"))[FigureName.MEMORY]
    assert found.unknown == f"b has no new series of {MEMORY}"
    found = figures(one, pods=("a", "b"))[FigureName.MEMORY]
    assert (found.value, found.source) == (5, "cAdvisor by Prometheus, 1 of 2 pods")


def test_sums_of_pods_and_their_pause_containers_are_not_added() -> None:
    whole, pause = series(MEMORY, 9, container=""), series(MEMORY, 1, container="POD")
    inner = [series(MEMORY, 5), series(MEMORY, 3, container="proxy")]
    assert figures([whole, pause, *inner])[FigureName.MEMORY].value == 8
    assert figures([whole, pause])[FigureName.MEMORY].value == 9
    each = [
        series(CPU, 0, 30, cpu="total"),
        series(CPU, 0, 15, cpu="0"),
        series(CPU, 0, 15, cpu="1"),
    ]
    assert figures(each)[FigureName.CPU].value == 1
    assert figures(each[1:])[FigureName.CPU].value == 1


def test_containers_of_a_pod_share_its_network() -> None:
    received = "container_network_receive_bytes_total"
    shared = [
        series(received, 0, 300, container=container, interface=interface)
        for container in ("vllm", "proxy")
        for interface in ("eth0", "net1")
    ]
    assert figures(shared)[FigureName.NETWORK_IN].value == 20
    whole = [
        series(received, 0, 600, container=container, interface="eth0") for container in ("", "POD")
    ]
    assert figures([*shared, *whole])[FigureName.NETWORK_IN].value == 20


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"pod": "dcgm-x", "exported_pod": "a"}, 0.5),
        ({"pod": "a", "exported_pod": "other"}, None),
        ({"pod": "a"}, 0.5),
    ],
)
def test_gpus_are_those_of_the_exported_pod(labels: dict[str, str], expected: Any) -> None:
    found = figures(dcgm=[series(GPU, 50, UUID="GPU-1", **labels)])
    assert found[FigureName.GPU_USE].value == expected


def test_parts_of_a_gpu_are_told_apart_and_blank_figures_are_none() -> None:
    active = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
    parts = [
        series(active, share, UUID="GPU-1", GPU_I_ID=part)
        for share, part in ((0.2, "1"), (0.6, "2"))
    ]
    assert figures(dcgm=parts)[FigureName.GPU_USE].value == 0.4
    memory = [series(USED, 1024, UUID="GPU-1"), series(FREE, 3072, UUID="GPU-1")]
    found = figures(dcgm=memory)[FigureName.GPU_MEMORY]
    assert (found.value, found.of) == (2**30, 4 * 2**30)
    blank = figures(dcgm=[series(USED, 0x7FFFFFF0, UUID="GPU-1"), series(GPU, 2e9, UUID="GPU-1")])
    assert blank[FigureName.GPU_MEMORY].unknown
    assert blank[FigureName.GPU_USE].unknown


def test_a_pod_of_the_same_name_has_what_it_has_now() -> None:
    # A StatefulSet's pod came up again: on another GPU, without its second container.
    def gpu(uuid: str, used: float, *, until: float = T) -> list[Series]:
        both = ((USED, used), (FREE, 4096 - used))
        return [series(metric, n, n, until=until, UUID=uuid) for metric, n in both]

    before, now = gpu("GPU-1", 4000, until=T - 50), gpu("GPU-2", 1024)
    found = figures(dcgm=[*before, *now])[FigureName.GPU_MEMORY]
    assert (found.value, found.of) == (2**30, 4 * 2**30)
    gone = series(MEMORY, 3, 3, until=T - 50, container="proxy")
    assert figures([gone, series(MEMORY, 5, 5)])[FigureName.MEMORY].value == 5
    late = series(MEMORY, 3, 3, until=T - 30, container="proxy")  # not scraped once
    assert figures([late, series(MEMORY, 5, 5)])[FigureName.MEMORY].value == 8


def test_without_series_every_figure_says_so() -> None:
    assert all(figure.unknown and figure.value is None for figure in figures().values())
