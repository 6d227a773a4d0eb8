"""Whose samples these are: worlds of pods and Prometheis, and what the suite says of each."""

import ast
import math
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cluster.required import debian_tool
from support.prometheus import running_prometheus
from support.scraped_pods import (
    MIDDLE,
    NEW,
    OLD,
    Pod,
    World,
    four,
    merged,
    outage,
    scripted,
    series_key,
)
from support.scripted_prometheus import NOW, T

import vllm_rollout
from vllm_rollout.judge import Outcome
from vllm_rollout.judge.live_slo import error_rate_verdicts, latency_verdict
from vllm_rollout.model.deployment import Deployment
from vllm_rollout.model.errors import UnreachableError
from vllm_rollout.observe.deployment_metrics import KV_CACHE_USAGE, DeploymentMetrics
from vllm_rollout.observe.prometheus import Prometheus
from vllm_rollout.policy import load_policy

PRODUCTION = Deployment("llama-2-7b", "production")
WINDOW = timedelta(minutes=15)


def metrics(prometheus: Prometheus, **labels: str) -> DeploymentMetrics:
    policy = {"prometheus.url": "http://prometheus"}
    policy |= {f"prometheus.labels.{name}": value for name, value in labels.items()}
    return DeploymentMetrics(prometheus, load_policy(None, overrides=policy).prometheus, PRODUCTION)


def of(world: World, **labels: str) -> DeploymentMetrics:
    return metrics(scripted(lambda metric: world), **labels)


@dataclass
class Judged:
    errors: str
    latency: str
    words: str


def judged(found: DeploymentMetrics, end: datetime = NOW) -> Judged:
    """The outcomes of the gate `live_metrics`, and what it says where it does not know."""
    rates, latency = found.error_rates(WINDOW, end=end), found.latency(WINDOW, end=end)
    (errors,) = error_rate_verdicts(rates.sources, limit=0.01, confidence=0.95)
    slow = latency_verdict(latency, percentile=95, limit_seconds=2.5, confidence=0.95)
    return Judged(errors.outcome, slow.outcome, rates.unknown or latency.unknown)


def one(pods: Sequence[Pod], offset: float = 0, **labels: str) -> World:
    """The pods as one Prometheus scraped them, one after the other."""
    return merged(*(p.scraped(T, offset=offset + i, **labels) for i, p in enumerate(pods)))


def pair(pods: Sequence[Pod]) -> World:
    return merged(one(pods, replica="a"), one(pods, 7, replica="b"))


# ------------------------------------------------- not known whose


def relabelled(pods: Sequence[Pod], **label: str) -> World:
    """A label was added to the targets five minutes ago."""
    world = one(pods)
    before = {k: {t: v for t, v in s.items() if t <= T - 300} for k, s in world.items()}
    since = {k: {t: v for t, v in s.items() if t > T - 300} for k, s in world.items()}
    return merged(
        before, {tuple(sorted((*key, *label.items()))): samples for key, samples in since.items()}
    )


def deduplicated() -> World:
    """`up` of replica a, whose scrapes failed for a while; the counters went to b and stay."""
    down = one(four(bad=outage, down=(600, 420)))
    other = one(four(bad=outage), 7)
    return {
        key: samples
        if dict(key)["__name__"] == "up"
        else {t: v for t, v in samples.items() if t < T - 600}
        | {t: v for t, v in other[key].items() if t >= T - 590}
        for key, samples in down.items()
    }


def on_nodes(name: bool) -> World:
    """Two pods a node, and `instance` is the node; with a label `pod`, or without."""
    pods = [
        Pod(f"node-{i % 2}", 9000 + i * 100, bad=outage, labels={"pod": f"p{i}"} if name else {})
        for i in range(4)
    ]
    return merged(*(pod.scraped(T, offset=3 * i) for i, pod in enumerate(pods)))


def clusters(*addresses: str) -> World:
    eu = [Pod(f"10.0.0.{i}:8000", rate=0.5, bad=outage) for i in range(1, 5)]
    us = [Pod(f"{address}:8000", rate=20) for address in addresses]
    return merged(one(eu, cluster="eu", region="x"), one(us, 6, cluster="us", region="y"))


MIXED: dict[str, tuple[Callable[[], World], str]] = {
    "HA pair": (
        lambda: pair(four(bad=outage)),
        r"label that no selector fixes: replica \(a, b\); set",
    ),
    "HA pair, slow": (lambda: pair(four(slow_since=900)), r"replica"),
    "HA pair, old errors": (
        lambda: pair(four(bad=lambda ago: 0.5 if ago > 960 else 0)),
        r"replica \(a, b\); set it in `prometheus\.labels`",
    ),
    "HA pair in the same millisecond": (
        lambda: merged(*(one(four(bad=outage), prometheus=r) for r in "ab")),
        r"prometheus \(a, b\)",
    ),
    "one of two has a label": (
        lambda: merged(one(four(bad=outage)), one(four(), 7, scraper="b")),
        r"scraper \(b, none\)",
    ),
    "deduplicated": (deduplicated, r"10\.0\.0\.\d:8000 has samples from \d+ times .* no `up`"),
    "instance is the node": (lambda: on_nodes(True), r"node-\d has 2 `up` at once.* pod:"),
    "instance is the node, no label": (
        lambda: on_nodes(False),
        r"start of the process of node-. went back",
    ),
    "two clusters": (
        lambda: clusters("10.9.0.1", "10.9.0.2"),
        r"cluster \(eu, us\), region \(x, y\);",
    ),
    "two clusters, one address": (lambda: clusters("10.0.0.1"), r"cluster \(eu, us\)"),
    "two jobs scrape the same": (
        lambda: merged(one(four(bad=outage)), one(four(bad=outage), 7, job="again")),
        r"job \(again, vllm\)",
    ),
    "label added": (lambda: relabelled(four(), team="ml"), r"team \(ml, none\)"),
    "label of servers added": (
        lambda: relabelled(four(), node="n1"),
        r"10\.0\.0\.\d:8000 has other labels since 09:55:\d\d UTC \(node\)",
    ),
    "le written otherwise": (
        lambda: one(
            four(
                le=lambda ago, bound: (
                    f"{bound:g}" if ago > 300 else f"{bound}".replace("inf", "+Inf")
                )
            )
        ),
        r"series of 10\.0\.0\.\d:8000 have other labels since 09:55:\d\d UTC \(le\)",
    ),
    "counters relabelled": (
        lambda: one(four(counters=lambda ago: {"model": "m"} if ago < 300 else {})),
        r"series of 10\.0\.0\.\d:8000 have other labels .* \(model\)",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_samples_of_unknown_servers_are_inconclusive_and_named(name: str) -> None:
    world, words = MIXED[name]
    found = judged(of(world()))
    assert "inconclusive" in (found.errors, found.latency), found
    assert "pass" not in (found.errors, found.latency) or "le" in words, found
    assert re.search(words, found.words), found.words


@pytest.mark.parametrize("metric", ["up", "process_start_time_seconds"])
def test_a_balancer_over_two_prometheis_is_inconclusive(metric: str) -> None:
    """One question goes to the other Prometheus: no label tells them apart."""
    worlds = {True: one(four(bad=outage), 7), False: one(four(bad=outage))}
    found = judged(metrics(scripted(lambda asked: worlds[asked == metric])))
    assert (found.errors, found.latency) == ("inconclusive", "inconclusive")
    words = "several Prometheis answer as one, or a rule has made them"
    assert re.search(words, found.words), found.words


def test_with_the_label_set_each_world_is_judged_as_it_is() -> None:
    assert judged(of(pair(four(bad=outage)), replica="a")).errors == "fail"
    assert judged(of(pair(four()), replica="b")) == Judged("pass", "pass", "")
    assert judged(of(pair(four(slow_since=900)), replica="b")).latency == "fail"
    assert judged(of(clusters("10.9.0.1", "10.0.0.1"), cluster="eu", region="x")).errors == "fail"
    # Servers of one deployment may differ in it, if the policy says so.
    teams = merged(one(four()[:2], site="x"), one(four()[2:], 3, site="y"))
    assert judged(of(teams, site="off")).errors == "pass"
    assert judged(of(teams)).errors == "inconclusive"


def test_a_soak_does_not_go_by_samples_of_unknown_servers() -> None:
    start = NOW - WINDOW
    for world in (pair(four()), on_nodes(True), on_nodes(False), clusters("10.9.0.1")):
        with pytest.raises(UnreachableError, match="Whose samples these are is not known: "):
            of(world).uptime(start, NOW)
        assert of(world).gauge(KV_CACHE_USAGE, at=NOW) is None
    seen = of(pair(four()), replica="a").uptime(start, NOW)
    assert {up for _, up in seen.moments[8:]} == {4}
    assert seen.restarts == ()
    # Its servers were up under either label.
    assert of(relabelled(four(), node="n")).uptime(start, NOW).restarts == ()


# ------------------------------------------------- sound worlds


def rolling() -> list[Pod]:
    """Two vLLM versions: pods go one by one, others come; each with its own labels and buckets."""
    labels = {"pod_template_hash": "a1", "node": "n1", "app_kubernetes_io_version": "0.11"}
    old = [
        Pod(f"10.0.0.{i}:8000", gone=100 * i, buckets=OLD, labels={**labels, "pod": f"a{i}"})
        for i in range(1, 5)
    ]
    labels |= {"pod_template_hash": "b2", "app_kubernetes_io_version": "0.12"}
    new = [
        Pod(f"10.0.1.{i}:8000", born=100 * i + 40, labels={**labels, "pod": f"b{i}"})
        for i in range(1, 5)
    ]
    return old + new


LWS = "leaderworkerset_sigs_k8s_io_group"
SOUND: dict[str, Callable[[], World]] = {
    "steady": lambda: one(four()),
    "without start times": lambda: one(four(starts=False)),
    "on several nodes": lambda: one(
        [Pod(f"10.0.0.{i}:8000", labels={"pod": f"p{i}", "node": f"n{i % 2}"}) for i in range(4)]
    ),
    "rolling upgrade": lambda: one(rolling()),
    "by OpenTelemetry, with its names of pods": lambda: one(
        [
            Pod(f"10.0.0.{i}:8000", labels={"k8s_pod_name": f"p{i}", "k8s_node_name": f"n{i}"})
            for i in range(4)
        ]
    ),
    "by a LeaderWorkerSet, with all labels of its pods": lambda: one(
        [
            Pod(f"10.0.0.{i}:8000", labels={f"{LWS}_{key}": f"{i}" for key in ("index", "key")})
            for i in range(4)
        ]
    ),
    "with their ReplicaSets": lambda: one(
        [Pod(f"10.0.0.{i}:8000", labels={"replicaset": f"r{i % 2}"}) for i in range(4)]
    ),
    "buckets of two versions": lambda: one([*four(buckets=MIDDLE)[:3], *four()[3:]]),
    "upgraded at the same address": lambda: one(
        four(restarted=300, buckets=OLD, buckets_since=NEW)
    ),
    "one pod comes": lambda: one([*four(), Pod("10.0.0.9:8000", born=400)]),
    "a pod that is long up is scraped for the first time": lambda: one(
        [*four(), Pod("10.0.0.9:8000", ready=400)]
    ),
    "its address is used again": lambda: one(
        [
            *four()[1:],
            Pod("10.0.0.1:8000", gone=500, labels={"pod": "a"}),
            Pod("10.0.0.1:8000", born=470, labels={"pod": "b"}),
        ]
    ),
    "one restarts": lambda: one([*four()[1:], Pod("10.0.0.1:8000", restarted=400)]),
    "one restarts, without start times": lambda: one(
        [*four()[1:], Pod("10.0.0.1:8000", restarted=400, starts=False)]
    ),
    "one scrape is missed": lambda: one([*four()[1:], Pod("10.0.0.1:8000", down=(410, 395))]),
    "old errors": lambda: one(four(bad=lambda ago: 0.5 if ago > 960 else 0)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_world_passes_without_a_false_alarm(name: str) -> None:
    found = of(SOUND[name]())
    assert judged(found) == Judged("pass", "pass", "")
    found.uptime(NOW - WINDOW, NOW)
    assert found.gauge(KV_CACHE_USAGE, at=NOW) is not None


@pytest.mark.parametrize("name", ["steady", "rolling upgrade", "one restarts", "one pod comes"])
def test_a_broken_sound_world_fails(name: str) -> None:
    broken = {
        "steady": four(bad=outage, slow_since=900),
        "rolling upgrade": rolling(),
        "one restarts": [*four()[1:], Pod("10.0.0.1:8000", restarted=400)],
        "one pod comes": [*four(), Pod("10.0.0.9:8000", born=400)],
    }[name]
    for pod in broken:
        pod.bad, pod.slow_since = outage, 900
    assert (judged(of(one(broken))).errors, judged(of(one(broken))).latency) == ("fail", "fail")


def test_what_a_new_pod_counted_before_its_first_scrape_counts() -> None:
    """It failed everything in its first 14 seconds, before Prometheus knew it."""
    new = Pod("10.0.0.9:8000", born=454, ready=440, rate=20, bad=lambda ago: float(ago > 440))

    def failures(*pods: Pod) -> tuple[int, int]:
        (counts,) = of(one([*four(), *pods])).error_rates(WINDOW, end=NOW).sources
        return counts.failures, counts.failures_at_most

    least, most = failures(new)
    assert least == most >= 240
    # It ran before the window: what it brings may be older, unless its series is not.
    new.born, new.bad = 5000, lambda ago: float(440 < ago < 480)
    least, most = failures(new)
    assert least == 0 < most
    new.failed_since = 480
    assert failures(new) == (most, most)
    new.bad, new.restarted = lambda ago: float(ago > 440), 200
    new.failed_since = 4000  # what it had failed before is old
    assert failures(new)[0] == 0


def test_a_percentile_goes_by_bounds_that_all_servers_have() -> None:
    mixed = of(one([*four(buckets=OLD)[:2], *four()[2:]])).latency(WINDOW, end=NOW)
    assert tuple(mixed.cumulative) == OLD
    assert mixed.percentile_above(95, 6) is False
    hidden = of(one([*four(buckets=MIDDLE, seconds=70)[:3], *four(seconds=70)[3:]]))
    slow = hidden.latency(WINDOW, end=NOW)
    assert slow.percentile_above(95, 6) is True
    assert slow.percentile_above(95, 80) is None


def test_a_gateway_may_be_anywhere_but_of_one_prometheus() -> None:
    """Its targets are sidecars in several namespaces: only whose samples they are must be known."""
    sidecars = [
        {"job": "envoy", "instance": f"10.1.0.{i}:15090", "namespace": f"team-{i}", "app": f"a{i}"}
        for i in range(2)
    ]

    def gateway(**labels: str) -> World:
        world: World = {}
        for sidecar in sidecars:
            for i in range(72):
                at = T - 1080 + 15 * i
                own = {**sidecar, **labels}
                world.setdefault(series_key("up", **own), {})[at] = 1
                own |= {"response_code": "503", "destination_service_name": PRODUCTION.release}
                world.setdefault(series_key("istio_requests_total", **own), {})[at] = 10 * i
        return world

    def unknown(world: World, **fixed: str) -> str:
        block = {
            "metric": "istio_requests_total",
            "labels": {"destination_service_name": "{release}", **fixed},
            "status_label": "response_code",
            "failed": "5..",
        }
        rules = {"prometheus.url": "http://prometheus", "prometheus.gateway": block}
        found = DeploymentMetrics(
            scripted(lambda metric: merged(one(four()), world)),
            load_policy(None, overrides=rules).prometheus,
            PRODUCTION,
        )
        return found.error_rates(WINDOW, end=NOW).sources[1].unknown

    both = merged(gateway(cluster="eu"), gateway(cluster="us"))
    assert unknown(gateway()) == unknown(both, cluster="eu") == ""
    assert "set it in `prometheus.gateway.labels`" in unknown(both)


def test_a_scrape_between_two_questions_is_no_other_prometheus() -> None:
    """The newest scrape came in after `up` had been asked for."""
    world = one(four())
    newest = {
        key: {t: v for t, v in samples.items() if t < max(samples)}
        for key, samples in world.items()
        if dict(key)["__name__"] == "up"
    }
    assert judged(of({**world, **newest})) == Judged("pass", "pass", "")


# ------------------------------------------------- one place, and a real Prometheus


def test_one_function_alone_tells_which_target_a_series_is_of() -> None:
    package = Path(vllm_rollout.__file__).parent
    naming = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "instance" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value == "instance"
    }
    assert naming == {"observe/series.py"}


@pytest.mark.prometheus
def test_a_real_prometheus_never_passes_an_outage_in_a_pair(tmp_path: Path) -> None:
    now = math.floor(datetime.now(UTC).timestamp()) // 60 * 60
    world = merged(
        *(
            pod.scraped(now, offset=i + offset, replica=replica)
            for replica, offset in (("a", 0), ("b", 7))
            for i, pod in enumerate(four(bad=outage))
        )
    )
    lines = []
    for metric in sorted({dict(key)["__name__"] for key in world}):
        lines.append(f"# TYPE {metric} unknown")
        for key, samples in world.items():
            labels = ",".join(f'{k}="{v}"' for k, v in key if k != "__name__")
            if dict(key)["__name__"] == metric:
                lines += [f"{metric}{{{labels}}} {v} {t:.3f}" for t, v in sorted(samples.items())]
    (tmp_path / "samples").write_text("\n".join([*lines, "# EOF\n"]))
    create = [debian_tool("promtool"), "tsdb", "create-blocks-from", "openmetrics"]
    subprocess.run([*create, "samples", "data"], cwd=tmp_path, check=True, capture_output=True)
    end = datetime.fromtimestamp(now, UTC)
    with running_prometheus(tmp_path, {}) as url:
        prometheus = Prometheus(url, timeout_seconds=30)
        unknown = judged(metrics(prometheus), end)
        assert (unknown.errors, unknown.latency) == (Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE)
        assert "replica (a, b)" in unknown.words
        assert judged(metrics(prometheus, replica="a"), end).errors == Outcome.FAIL
        prometheus.close()
