"""Figures of deployments as they run: whence each comes, and why it is not known."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from support.exporters import NAMESPACE, Page, cadvisor, dcgm, exposed, kube_state
from support.prometheus import running_prometheus, until
from support.simulated import WEDNESDAY

from vllm_rollout.model.deployment import Build, Deployment, Replica, Revision, RevisionStatus
from vllm_rollout.model.errors import RolloutError, UnreachableError
from vllm_rollout.model.live_figures import Figure, FigureName, ReplicaUsage, SideFigures, Usage
from vllm_rollout.observe.live_figures import LiveFigures
from vllm_rollout.platform.reader import ReleaseReader
from vllm_rollout.policy import load_policy
from vllm_rollout.simulator.testing import RunningSimulator

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

    def replicas(self, deployment: Deployment) -> Sequence[Replica]:
        if self.fails:
            raise self.fails
        return self.releases.get(deployment.release, ())

    def history(self, deployment: Deployment) -> Sequence[Revision]:
        return self.revisions if deployment.release in self.releases else ()

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
    assert found[FigureName.READY] == Figure(value=2.0, of=2.0, source="kubernetes")
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
    assert "llama-1: /metrics answers HTTP 503" in of_pods(Page([BEFORE, LOADED]), away)[
        FigureName.QUEUE
    ].unknown
    found = of_pods(Page([BEFORE, LOADED]), away, ready=False)
    assert found[FigureName.RUNNING].value == 8
    assert found[FigureName.RUNNING].source == "/metrics of 1 of 2 replicas"


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
