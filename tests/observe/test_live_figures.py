"""Figures of deployments as they run: whence each comes, and why it is not known."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from support.exporters import NAMESPACE, Page, cadvisor, dcgm, exposed, kube_state
from support.prometheus import running_prometheus, until
from support.scraped_pods import LABELS, Pod, World, four, merged, scripted, series_key
from support.scripted_prometheus import NOW
from support.simulated import WEDNESDAY

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, RevisionStatus
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName, ReplicaUsage, SideFigures, Usage
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.observe.scraped_figures import ScrapedFigures
from vllm_rollout.observe.server_figures import NotKnownError
from vllm_rollout.observe.usage_figures import usage_figures
from vllm_rollout.platform.base import PathErrors
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import load_policy
from vllm_rollout.simulator.running import RunningSimulator

RECORDED = Path(__file__).parents[1] / "data" / "vllm-0.32.0" / "noauth"
BEFORE = (RECORDED / "metrics_1_after.body").read_bytes()
LOADED = (RECORDED / "metrics_2_midload_c8.body").read_bytes()
NAMES = Path(__file__).parents[1] / "data" / "vllm-metric-names"
PRODUCTION = Deployment("llama-2-7b", "production", NAMESPACE)
OLD, NEW = Build(values_digest="sha256:1"), Build(values_digest="sha256:2")
WINDOW = timedelta(minutes=5)
OF_SERVERS = [
    name
    for name in FigureName
    if name
    not in (
        *(FigureName.READY, FigureName.RESTARTS, FigureName.GPU_USE, FigureName.GPU_MEMORY),
        *(FigureName.CPU, FigureName.MEMORY, FigureName.NETWORK_IN, FigureName.NETWORK_OUT),
    )
]


def replica(name: str, url: str = "", *, ready: bool = True, build: Build = NEW) -> Replica:
    return Replica(
        name=name, phase="Running", ready=ready, restarts=1, address=url, build=build.digest
    )


def revision(number: int, build: Build = NEW, *, replicas: int = 2) -> Revision:
    return Revision(
        number=number,
        build=build,
        status=RevisionStatus.DEPLOYED,
        created=WEDNESDAY,
        description="",
        replicas=replicas,
        capacity=2,
    )


@dataclass
class Platform:
    """A platform that has these replicas, by release."""

    releases: Mapping[str, Sequence[Replica]]
    revisions: Sequence[Revision] = (revision(7),)
    used: Usage = field(default_factory=lambda: Usage(source="the platform", unknown="not asked"))
    fails: RolloutError | None = None
    name: str = "kubernetes"
    path_error: str = ""
    asked: int = 0

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        if self.fails:
            raise self.fails
        return self.releases.get(deployment.release, ())

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        return self.revisions if deployment.release in self.releases else ()

    def path_errors(self, _: Deployment) -> PathErrors:
        self.asked += bool(self.path_error)
        return PathErrors(count=self.asked, what=self.path_error)

    def replica_url(self, _: Deployment, replica: Replica) -> str:
        return replica.address

    def usage(self, _: Deployment) -> Usage:
        return self.used


def read(platform: Platform, **policy: Any) -> list[SideFigures]:
    changes = {name.replace("_", "."): value for name, value in policy.items()}
    with LiveFigures(
        load_policy(None, overrides=changes), cast("ReleaseReader", platform), pause_seconds=0.01
    ) as figures:
        return figures.read(PRODUCTION, window=WINDOW, now=datetime.now(UTC))


def of_pods(*pages: Page, ready: bool = True) -> Mapping[FigureName, Figure]:
    """The figures of pods whose `/metrics` are these; the last of them is ready or not."""
    with exposed(*pages):
        pods = [
            replica(f"llama-{n}", page.url, ready=ready or n < len(pages) - 1)
            for n, page in enumerate(pages)
        ]
        (side,) = read(Platform({PRODUCTION.release: pods}))
    assert list(side.figures) == list(FigureName)
    return side.figures


def changed(text: bytes, metric: str, value: str) -> bytes:
    """The page with another value of a metric, in all of its series."""
    pattern = rb"(?m)^(%s(?:\{.*\})?) .*$" % re.escape(metric).encode()
    page, count = re.subn(pattern, rb"\g<1> " + value.encode(), text)
    assert count, metric
    return page


def test_two_scrapes_of_a_recorded_vllm_make_its_figures() -> None:
    found = of_pods(Page([BEFORE, LOADED]), Page([BEFORE, LOADED]))
    rate = {name: found[name].value or 0.0 for name in OF_SERVERS}
    assert rate[FigureName.OUTPUT_TOKEN_RATE] > rate[FigureName.INPUT_TOKEN_RATE] > 0
    # 7,073 tokens out for 1,190 in, of each of the two, in the same time.
    shares = rate[FigureName.OUTPUT_TOKEN_RATE] / rate[FigureName.INPUT_TOKEN_RATE]
    assert math.isclose(shares, 7073 / 1190)
    assert found[FigureName.RUNNING].value == 16
    assert found[FigureName.QUEUE].value == 0
    assert found[FigureName.KV_CACHE].value == pytest.approx(0.00195, rel=0.01)
    assert found[FigureName.PREFIX_CACHE_HIT_RATE].value == 0
    # The recorded answers took 0.06 s: all that is known is the first bucket.
    assert found[FigureName.LATENCY_P95] == Figure(
        value=0.0,
        upper=0.3,
        source="/metrics of 2 replicas",
        at=found[FigureName.RUNNING].at,
    )
    assert found[FigureName.TTFT_P95].value == 0.005
    ready = found[FigureName.READY]
    assert (ready.value, ready.of, ready.source) == (2, 2, "kubernetes")
    assert found[FigureName.RESTARTS].value == 2
    assert "not asked" in found[FigureName.CPU].unknown


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ([BEFORE, b"<!DOCTYPE html><title>Sign in</title>"], "llama-0: /metrics answers text/html"),
        ([BEFORE, b""], "llama-0: /metrics is empty"),
        ([BEFORE, b'vllm:num_requests_running{engine="0'], "not in Prometheus' text format"),
        ([BEFORE, b"\xff\xfe\x00"], "not in Prometheus' text format"),
        ([BEFORE + b"vllm:x 1\n", BEFORE * 2], "twice"),
        ([BEFORE, b"a" * (9 << 20)], "llama-0: "),
    ],
    ids=["page", "empty", "cut", "binary", "twice", "large"],
)
def test_what_is_no_metrics_makes_every_figure_unknown(pages: list[Any], words: str) -> None:
    found = of_pods(Page(pages), Page([BEFORE, LOADED]))
    for name in OF_SERVERS:
        assert words in found[name].unknown
        assert "1 of 2 replicas" in found[name].unknown
    assert found[FigureName.READY].value == 2


def test_a_pod_that_does_not_answer_is_named_and_counts_only_when_ready() -> None:
    away = Page([b"busy"], status=503)
    assert (
        "llama-1: /metrics answers HTTP 503"
        in of_pods(Page([BEFORE, LOADED]), away)[FigureName.QUEUE].unknown
    )
    found = of_pods(Page([BEFORE, LOADED]), away, ready=False)
    assert found[FigureName.RUNNING].value == 8
    assert found[FigureName.RUNNING].source == "/metrics of 1 of 2 replicas"


def test_a_path_that_is_refused_is_the_reason_with_what_to_grant() -> None:
    refused = "403. Ask for a Role that allows the verb 'create' on 'pods/portforward'"
    with exposed(away := Page([b""], status=503)):
        pods = [replica("llama-0", away.url)]
        (side,) = read(Platform({PRODUCTION.release: pods}, path_error=refused))
    assert refused in side.figures[FigureName.QUEUE].unknown


def test_a_reset_between_the_scrapes_makes_rates_unknown_and_not_gauges() -> None:
    restarted = changed(LOADED, "process_start_time_seconds", "1.79543299e+09")
    found = of_pods(Page([BEFORE, restarted]))
    assert "llama-0 was restarted between the two scrapes" in found[FigureName.ERROR_RATE].unknown
    assert found[FigureName.RUNNING].value == 8
    fell = changed(LOADED, "vllm:prompt_tokens_total", "1")
    found = of_pods(Page([BEFORE, fell]))
    for name in (FigureName.INPUT_TOKEN_RATE, FigureName.LATENCY_P95, FigureName.REQUEST_RATE):
        assert "it was reset" in found[name].unknown


def test_numbers_that_are_none_are_unknown_and_never_zero() -> None:
    broken = changed(LOADED, "vllm:kv_cache_usage_perc", "NaN")
    broken = changed(broken, "vllm:generation_tokens_total", "NaN")
    broken = changed(broken, "vllm:num_requests_waiting", "-1")
    found = of_pods(Page([BEFORE, broken]))
    assert "no series of vllm:kv_cache_usage_perc" in found[FigureName.KV_CACHE].unknown
    assert "no series of vllm:generation" in found[FigureName.OUTPUT_TOKEN_RATE].unknown
    assert "below 0" in found[FigureName.QUEUE].unknown
    assert found[FigureName.INPUT_TOKEN_RATE].value
    quiet = of_pods(Page([BEFORE]))
    assert quiet[FigureName.REQUEST_RATE].value == 0
    assert quiet[FigureName.ERROR_RATE].unknown == "no request in this time"
    assert quiet[FigureName.LATENCY_P50].unknown == "no request in this time"
    assert quiet[FigureName.PREFIX_CACHE_HIT_RATE].unknown == "no token was looked up in this time"


def test_histograms_with_other_bounds_are_not_added_up() -> None:
    bucket = b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="%s"'
    other = LOADED.replace(bucket % b"0.3", bucket % b"0.4")
    found = of_pods(Page([BEFORE, other]))
    assert "are others at the second scrape" in found[FigureName.LATENCY_P95].unknown
    both = [page.replace(bucket % b"0.3", bucket % b"0.4") for page in (BEFORE, LOADED)]
    found = of_pods(Page([BEFORE, LOADED]), Page([*both]))
    assert (found[FigureName.LATENCY_P95].value, found[FigureName.LATENCY_P95].upper) == (0, 0.5)


def test_a_bound_that_is_no_number_leaves_the_other_figures() -> None:
    bucket = b'vllm:e2e_request_latency_seconds_bucket{engine="0",le="%s"'
    pages = [page.replace(bucket % b"0.3", bucket % b"fast") for page in (BEFORE, LOADED)]
    found = of_pods(Page([*pages]))
    assert found[FigureName.LATENCY_P95].unknown.startswith("no series of vllm:e2e_request")
    assert found[FigureName.RUNNING].value == 8


@pytest.mark.parametrize("file", sorted(NAMES.iterdir()), ids=lambda file: file.stem)
@pytest.mark.parametrize("before", ["vllm:", "vllm_"])
def test_figures_go_by_the_names_of_each_version(file: Path, before: str) -> None:
    named = set(file.read_text().split())

    def page(count: int) -> bytes:
        lines = [f"process_start_time_seconds {1.79e9}"]
        handler = 'handler="/v1/completions",method="POST",status="2xx"'
        lines.append(f"http_requests_total{{{handler}}} {count}")
        for name in sorted(named):
            own = name.replace("vllm:", before)
            if "_seconds" in name:
                lines += [f'{own}_bucket{{le="{le}"}} {count}' for le in ("0.5", "1.0", "+Inf")]
            elif "num_requests" in name or name.endswith("_perc"):
                lines.append(f"{own} 0.5")
            else:
                lines.append(f"{own.removesuffix('_total')}_total {count}")
        return ("\n".join(lines) + "\n").encode()

    found = of_pods(Page([page(5), page(9)]))
    assert [name for name in OF_SERVERS if found[name].value is None] == []
    assert found[FigureName.KV_CACHE].value == 0.5
    assert (found[FigureName.ITL_P95].value, found[FigureName.ITL_P95].upper) == (0, 0.5)


# ------------------------------------------------------------- servers by Prometheus


def by_prometheus(world: World, pods: Sequence[Pod]) -> Mapping[FigureName, Figure]:
    """The figures of servers in a Prometheus that has these samples."""
    named = [replica(pod.address, f"http://{pod.address}") for pod in pods if not pod.gone]
    rules = load_policy(None).prometheus
    return ScrapedFigures(scripted(lambda _: world), rules, PRODUCTION, lambda: named).servers(
        timedelta(minutes=5)
    )


def test_servers_counts_are_added_up_and_a_restart_is_named() -> None:
    pods = four(bad=lambda _: 0.25)
    world = merged(*(pod.scraped(NOW.timestamp()) for pod in pods))
    found = by_prometheus(world, pods)
    assert found[FigureName.REQUEST_RATE].value == pytest.approx(8, rel=0.02)
    assert found[FigureName.ERROR_RATE].value == pytest.approx(0.25, rel=0.05)
    assert (found[FigureName.LATENCY_P95].value, found[FigureName.LATENCY_P95].upper) == (1.0, 1.5)
    assert found[FigureName.KV_CACHE].value == 0.5
    assert found[FigureName.QUEUE].unknown == "no series of vllm:num_requests_waiting"
    pods[0].restarted = 120
    world = merged(*(pod.scraped(NOW.timestamp()) for pod in pods))
    found = by_prometheus(world, pods)
    assert found[FigureName.REQUEST_RATE].source == "Prometheus, over 1 restart"
    assert found[FigureName.REQUEST_RATE].value == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("words", ["replica (a, b)", "has no samples", "no target"])
def test_samples_of_unknown_servers_make_no_figure(words: str) -> None:
    pods = four()
    worlds = {
        "replica (a, b)": [
            pod.scraped(NOW.timestamp(), offset=offset, replica=who)
            for pod in pods
            for who, offset in (("a", 0.0), ("b", 4.0))
        ],
        "has no samples": [pod.scraped(NOW.timestamp()) for pod in pods[1:]],
        "no target": [],
    }
    with pytest.raises(NotKnownError, match=re.escape(words)):
        by_prometheus(merged(*worlds[words]), pods)


def test_a_gauge_is_of_the_process_that_serves_now() -> None:
    pod = four()[0]
    pod.restarted = 30

    def gauge(name: str, before: float, now: float, *, engine: str = "0") -> World:
        """A gauge with and, in the process after it, without the label: as of another version."""
        own = {**LABELS, "instance": pod.address}
        key = series_key(f"vllm:{name}", **own, engine=engine)
        new = series_key(f"vllm:{name}", **own)
        ages = {at: NOW.timestamp() - at for at in up}
        return {
            key: {at: before for at, ago in ages.items() if ago > 30},
            new: {at: now for at, ago in ages.items() if ago <= 30},
        }

    whole = pod.scraped(NOW.timestamp())
    up = whole[series_key("up", **LABELS, instance=pod.address)]
    full = gauge("kv_cache_usage_perc", 0.99, 0.2)
    old_name = {series_key("vllm:gpu_cache_usage_perc", **LABELS, instance=pod.address): {}}
    del whole[series_key("vllm:kv_cache_usage_perc", **LABELS, instance=pod.address)]
    world = merged(whole, gauge("num_requests_waiting", 57, 3), full)
    found = by_prometheus(world, [pod])
    assert (found[FigureName.QUEUE].value, found[FigureName.KV_CACHE].value) == (3, 0.2)
    # An older version again, which has the older name.
    (key, before), (_, now) = full.items()
    world = merged(whole, {key: before, **dict.fromkeys(old_name, now)})
    assert by_prometheus(world, [pod])[FigureName.KV_CACHE].value == 0.2
    broken = gauge("num_requests_waiting", math.nan, math.nan)
    found = by_prometheus(merged(whole, broken), [pod])
    assert "has no number" in found[FigureName.QUEUE].unknown
    assert found[FigureName.REQUEST_RATE].value


def test_the_difference_of_two_clocks_is_one_however_long_an_answer_takes() -> None:
    live = LiveFigures(load_policy(None), cast("ReleaseReader", Platform({})))
    hour = timedelta(hours=1)

    def ahead(by: timedelta) -> timedelta:
        return live._ahead_of_here(lambda: datetime.now(UTC) + by)

    first = ahead(hour)
    assert {ahead(hour + timedelta(seconds=late)) for late in (0.3, -0.3, 0.01)} == {first}
    assert ahead(2 * hour) - first > hour / 2


def test_what_prometheus_does_not_keep_the_servers_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pod = Pod("10.0.0.1:8000", labels={"pod": "llama-0"})
    samples = pod.scraped(NOW.timestamp())
    full = series_key("vllm:kv_cache_usage_perc", **LABELS, **pod.labels, instance=pod.address)
    assert samples.pop(full)
    rules = load_policy(None).prometheus

    def of(_policy: Any, deployment: Deployment, replicas: Any) -> ScrapedFigures:
        return ScrapedFigures(scripted(lambda _: samples), rules, deployment, replicas)

    monkeypatch.setattr(ScrapedFigures, "of", of)
    with exposed(page := Page([BEFORE, LOADED])):
        (side,) = read(Platform({PRODUCTION.release: [replica("llama-0", page.url)]}))
    assert side.figures[FigureName.REQUEST_RATE].source == "Prometheus"
    assert side.figures[FigureName.KV_CACHE].source == "/metrics of 1 replica"


def test_a_pod_that_is_gone_is_in_no_gauge() -> None:
    pods = four()
    pods[0].gone = 90
    world = merged(*(pod.scraped(NOW.timestamp()) for pod in pods))
    for key in [key for key in world if dict(key)["__name__"] == "vllm:kv_cache_usage_perc"]:
        queue = {**dict(key), "__name__": "vllm:num_requests_waiting"}
        world[series_key(queue.pop("__name__"), **queue)] = dict.fromkeys(world[key], 3.0)
    found = by_prometheus(world, pods)
    assert found[FigureName.QUEUE].value == 9
    assert found[FigureName.REQUEST_RATE].value == pytest.approx(7.4, rel=0.05)


# ---------------------------------------------------- a real Prometheus, its exporters


@pytest.mark.prometheus
def test_a_real_prometheus_has_every_figure_of_each_side(tmp_path: Path) -> None:
    pods = ("llama-0", "llama-1", "llama-canary-0")
    options = {"model": PRODUCTION.model, "ttft_seconds": 0, "inter_token_seconds": 0}
    pages = [Page([lambda make=make: make(*pods)]) for make in (cadvisor, dcgm, kube_state)]
    with (
        RunningSimulator(**options) as one,
        RunningSimulator(**options) as two,
        RunningSimulator(**options) as canary,
        exposed(*pages),
    ):
        # The exporter's own pod is not the pod whose GPU it is.
        own = {"namespace": "gpu-operator", "pod": "dcgm-x"}
        targets = {
            server.url: {"namespace": NAMESPACE, "service": service, "pod": pod}
            for server, service, pod in (
                (one, PRODUCTION.release, pods[0]),
                (two, PRODUCTION.release, pods[1]),
                (canary, PRODUCTION.canary.release, pods[2]),
            )
        }
        with running_prometheus(
            tmp_path, {**targets, pages[0].url: {}, pages[1].url: own, pages[2].url: own}
        ) as url:
            platform = Platform(
                {
                    PRODUCTION.release: [replica(pods[0]), replica(pods[1])],
                    PRODUCTION.canary.release: [replica(pods[2])],
                }
            )

            def sides() -> list[SideFigures]:
                return read(platform, prometheus_url=url)

            def known() -> bool:
                complete(one, 3, 1)
                complete(canary, 2, 0)
                return all(
                    figure.value is not None for side in sides() for figure in side.figures.values()
                )

            until(known, what="all figures")
            baseline, beside = sides()
            assert [baseline.side, beside.side] == ["baseline", "canary"]
            ours, theirs = baseline.figures, beside.figures
            assert 0 < (ours[FigureName.ERROR_RATE].value or 0) < 1
            assert theirs[FigureName.ERROR_RATE].value == 0
            assert ours[FigureName.GPU_USE].value == 0.25
            assert ours[FigureName.GPU_MEMORY].value == 2 * 60 * 2**30
            assert ours[FigureName.GPU_MEMORY].of == 2 * 80 * 2**30
            assert ours[FigureName.CPU].value == pytest.approx(1.0, rel=1e-3)
            assert (ours[FigureName.MEMORY].value, ours[FigureName.MEMORY].of) == (
                pytest.approx(2 * 3 * 2**30),
                4 * 2**33,
            )
            assert ours[FigureName.NETWORK_IN].value == pytest.approx(2000, rel=1e-3)
            assert ours[FigureName.NETWORK_IN].source == "cAdvisor by Prometheus, eth0, net1"
            assert theirs[FigureName.NETWORK_OUT].value == pytest.approx(200, rel=1e-3)
            assert ours[FigureName.QUEUE].source == "Prometheus"
            assert ours[FigureName.READY].source == "kubernetes"
            # Where both sides have the same labels, their pods tell them apart.
            mixed = read(platform, prometheus_url=url, prometheus_labels_service=None)
            assert [side.figures[FigureName.QUEUE].source for side in mixed] == ["Prometheus"] * 2
            assert mixed[1].figures[FigureName.ERROR_RATE].value == 0
            platform.fails = UnreachableError("the API server is away", address="")
            (whole,) = sides()
            assert whole.figures[FigureName.READY] == Figure(
                value=2.0,
                of=2.0,
                source="kube-state-metrics by Prometheus",
                at=whole.figures[FigureName.READY].at,
            )
            assert whole.figures[FigureName.RESTARTS].value == 4
            assert whole.figures[FigureName.GPU_USE].value == 0.25


def unknown(sides: Sequence[SideFigures]) -> list[str]:
    return [
        f"{side.side} {name}: {figure.unknown}"
        for side in sides
        for name, figure in side.figures.items()
        if figure.unknown
    ]


def complete(server: RunningSimulator, good: int, bad: int) -> None:
    """Have so many requests answered, and so many fail."""
    body = {"model": PRODUCTION.model, "prompt": "Hello " * 40, "max_tokens": 2}
    with httpx.Client(base_url=server.url) as http:
        for rate, count in ((0.0, good), (1.0, bad)):
            http.patch("/simulator/dials", json={"error_rate": rate})
            for _ in range(count):
                http.post("/v1/completions", json=body)


# -------------------------------------------------------------- sides, platforms


def test_a_ramp_by_replicas_has_its_two_sides() -> None:
    revisions = (revision(6, OLD), revision(7, NEW, replicas=1))
    with exposed(new := Page([BEFORE, LOADED]), old := Page([BEFORE, BEFORE])):
        pods = [replica("llama-0", old.url, build=OLD), replica("llama-1", new.url)]
        baseline, canary = read(Platform({PRODUCTION.release: pods}, revisions))
    assert (baseline.side, baseline.revision) == ("baseline", 6)
    assert (canary.side, canary.revision) == ("canary", 7)
    assert baseline.figures[FigureName.RUNNING].value == 0
    assert canary.figures[FigureName.RUNNING].value == 8
    assert canary.figures[FigureName.READY].of == 1


def test_without_a_release_there_are_no_figures_and_without_an_answer_reasons() -> None:
    assert read(Platform({})) == []
    away = UnreachableError("the API server is away", address="https://cluster", remedy="Wait.")
    (side,) = read(Platform({}, fails=away))
    assert {figure.unknown for figure in side.figures.values()} == {"the API server is away. Wait."}
    (side,) = read(Platform({PRODUCTION.release: []}))
    assert side.figures[FigureName.READY].value == 0
    assert "0 of 0 replicas" in side.figures[FigureName.QUEUE].unknown


def test_what_processes_use_is_measured_between_two_readings() -> None:
    began = datetime.now(UTC)

    def usage(seconds: float, passed: float, **more: Any) -> Usage:
        used = ReplicaUsage(
            at=began + timedelta(seconds=passed), cpu_seconds=seconds, memory_bytes=3.0, **more
        )
        return Usage(source="processes", replicas={"a": used, "b": used}, gpu_source="nvidia-smi")

    gpus = {"gpu_use": (0.5, 0.7), "gpu_memory_bytes": 6.0, "gpu_memory_total_bytes": 8.0}
    before, after = usage(10, 0), usage(13, 2, **gpus)
    found = usage_figures(["a", "b", "c"], {"a", "b"}, before, after, began)
    assert (found[FigureName.CPU].value, found[FigureName.MEMORY].value) == (3.0, 6.0)
    assert found[FigureName.CPU].source == "processes, 2 of 3 replicas"
    assert found[FigureName.GPU_USE].value == pytest.approx(0.6)
    assert (found[FigureName.GPU_MEMORY].value, found[FigureName.GPU_MEMORY].of) == (12.0, 16.0)
    found = usage_figures(["a", "b", "c"], {"c"}, before, after, began)
    assert found[FigureName.CPU].unknown == "processes has no CPU time of c"
    found = usage_figures(["a"], {"a"}, after, before, began)
    assert found[FigureName.CPU].unknown == "processes has no CPU time of a"
    found = usage_figures(["a"], {"a"}, before, after, began + timedelta(hours=1))
    assert "nothing newer than" in found[FigureName.MEMORY].unknown
    found = usage_figures(["a"], {"a"}, before, replace(after, unknown="no"), began)
    assert found[FigureName.CPU].unknown == "processes: no"
