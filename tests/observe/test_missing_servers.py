"""Servers whose series end: gone with their pods, or there and no longer scraped."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from support.scraped_pods import Pod, World, four, live_gate, merged, outage, scripted
from support.scripted_prometheus import NOW, T

from vllm_rollout.model.deployment import Deployment, Replica
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.observe.prometheus_window import LiveMetrics
from vllm_rollout.policy import load_policy

PRODUCTION = Deployment("llama-2-7b", "production")
WINDOW = timedelta(minutes=15)
RULES = load_policy(None, overrides={"prometheus.url": "http://prometheus"}).prometheus


def of(world: World, replicas: Sequence[Replica] | None) -> DeploymentMetrics:
    return DeploymentMetrics(scripted(lambda _: world), RULES, PRODUCTION, lambda: replicas)


def judged(
    world: World, replicas: Sequence[Replica] | None, window: timedelta = WINDOW
) -> tuple[str, str, str]:
    return live_gate(of(world, replicas), window)


def scraped(pods: Sequence[Pod]) -> World:
    return merged(*(pod.scraped(T, offset=i) for i, pod in enumerate(pods)))


@cache
def half_end(ago: float, *, label: bool = False) -> World:
    """Agents of two servers die; whatever these answer since is seen by nobody."""
    pods = [
        Pod(
            f"pod-{i}:8000" if label else f"10.0.0.{i}:8000",
            gone=ago if i > 2 else 0,
            labels={"pod": f"pod-{i}"} if label else {},
        )
        for i in range(1, 5)
    ]
    return scraped(pods)


def two_ports(*, gone: float = 0, pods: int = 4) -> World:
    """Two servers a pod; those of the last pod that end, where any do."""
    ports = [(i, port) for i in range(1, pods + 1) for port in (8000, 8001)]
    return scraped([Pod(f"node-{i}:{port}", gone=gone * (i == pods)) for i, port in ports])


def replica(number: int, *, host: str = "", **more: object) -> Replica:
    fields = {"ready": True, "ready_since": NOW - timedelta(days=1), **more}
    return Replica(name=f"pod-{number}", phase="Running", restarts=0, host=host, **fields)  # type: ignore[arg-type]


def at_addresses(*numbers: int) -> list[Replica]:
    return [replica(number, host=f"10.0.0.{number}") for number in numbers]


def named(*numbers: int) -> list[Replica]:
    return [replica(number) for number in numbers]


ALL = (1, 2, 3, 4)
LOST: dict[str, tuple[Callable[[], World], Sequence[Replica] | None, str]] = {
    "their pods are there, by address": (
        lambda: half_end(600),
        at_addresses(*ALL),
        r"10\.0\.0\.3:8000 has no samples since 09:49:\d\d UTC; 10\.0\.0\.4:8000 has no",
    ),
    "their pods are there, by name": (
        lambda: half_end(600, label=True),
        named(*ALL),
        r"pod-3:8000 has no samples since 09:49:\d\d UTC; pod-4:8000",
    ),
    "so many pods are ready": (
        lambda: half_end(600),
        named(*ALL),
        r"10\.0\.0\.[34]:8000 has no samples since 09:49",
    ),
    "before the window began": (
        lambda: half_end(1000, label=True),
        named(*ALL),
        r"pod-3:8000 has no samples since 09:43",
    ),
    "their pods are there, and are not ready": (
        lambda: half_end(600),
        [*at_addresses(1, 2, 3), replica(4, host="10.0.0.4", ready=False, ready_since=None)],
        r"10\.0\.0\.4:8000 has no samples",
    ),
    "two were never scraped": (
        lambda: scraped(four()[:2]),
        at_addresses(*ALL),
        "pod-3 is ready and has no samples; pod-4 is ready",
    ),
    "two were never scraped, by their number": (
        lambda: scraped(four()[:2]),
        named(*ALL),
        "2 of 4 ready replicas without samples",
    ),
    "so many pods are ready, each with two ports": (
        lambda: two_ports(gone=600),
        named(*ALL),
        r"node-4:800[01] has no samples since 09:49:\d\d UTC; node-4:800[01] has no",
    ),
    "no platform is known": (
        lambda: half_end(600),
        None,
        r"10\.0\.0\.[34]:8000 has no .*; whether they are gone is not known without a platform",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_servers_that_are_there_and_not_scraped_are_inconclusive(name: str) -> None:
    world, replicas, words = LOST[name]
    errors, slow, why = judged(world(), replicas)
    assert (errors, slow) == ("inconclusive", "inconclusive"), why
    assert re.search(words, why), why


def replaced(*, label: bool) -> World:
    """Each pod went when the next was there."""
    old = [Pod(f"10.0.0.{i}:8000", gone=500 - 50 * i) for i in ALL]
    new = [Pod(f"10.0.1.{i}:8000", born=540 - 50 * i) for i in ALL]
    for i, pod in enumerate([*old, *new]):
        pod.labels = {"pod": f"pod-{i % 4 + 1}"} if label else {}
    return scraped([*old, *new])


SOUND: dict[str, tuple[Callable[[], World], Sequence[Replica] | None]] = {
    "two pods are gone": (lambda: half_end(600), at_addresses(1, 2)),
    "two pods are gone, by name": (lambda: half_end(600, label=True), named(1, 2)),
    "two pods are gone, by their number": (lambda: half_end(600), named(1, 2)),
    "a pod with two ports is gone, by its number": (lambda: two_ports(gone=600), named(1, 2, 3)),
    "two pods a node": (lambda: two_ports(pods=2), named(*ALL)),
    "two pods are gone a moment ago": (lambda: half_end(60), at_addresses(1, 2)),
    "others came in their places": (
        lambda: replaced(label=False),
        [replica(number, host=f"10.0.1.{number}") for number in ALL],
    ),
    "others of the same names came": (
        lambda: replaced(label=True),
        [replica(number, host=f"10.0.1.{number}") for number in ALL],
    ),
    "others came, and no platform is known": (lambda: replaced(label=False), None),
    "a pod is ready a moment ago": (
        lambda: scraped(four()),
        [*at_addresses(*ALL), replica(5, host="10.0.0.5", ready_since=NOW - timedelta(seconds=30))],
    ),
    "a pod serves by another": (
        lambda: scraped(four()),
        [*at_addresses(*ALL), replica(5, host="10.0.0.5", follower=True)],
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_servers_whose_pods_are_gone_are_not_missed(name: str) -> None:
    world, replicas = SOUND[name]
    errors, slow, why = judged(world(), replicas)
    assert (errors, slow) == ("pass", "pass"), why
    assert "lag" not in why


@pytest.mark.parametrize(
    "replicas",
    [at_addresses(*ALL), named(*ALL), None],
    ids=["by address", "by number", "no platform"],
)
def test_half_of_the_servers_late_ends_the_window_and_is_named(
    replicas: Sequence[Replica] | None,
) -> None:
    errors, slow, why = judged(half_end(120), replicas)
    assert (errors, slow) == ("pass", "pass")
    assert re.search(
        r"10\.0\.0\.[34]:8000 lags by 1[23]\d s, 10\.0\.0\.[34]:8000 by 1[23]\d s", why
    ), why
    # What all of them did until then counts.
    late = scraped([Pod(p.address, gone=120 * (i > 1), bad=outage) for i, p in enumerate(four())])
    assert judged(late, replicas)[0] == "fail"
    # A window that begins later than their newest samples shows half of the servers.
    errors, slow, why = judged(half_end(120), replicas, timedelta(seconds=90))
    assert (errors, slow) == ("inconclusive", "inconclusive")
    assert "no sample of every server in this time" in why


def test_a_soak_by_late_agents_sees_all_servers() -> None:
    seen = of(half_end(120), at_addresses(*ALL)).uptime(NOW - WINDOW, NOW)
    assert {up for _, up in seen.moments} == {4}
    ended = of(half_end(600), at_addresses(*ALL)).uptime(NOW - WINDOW, NOW)
    assert ended.moments[-1][1] == 2


def test_a_watch_names_the_servers_that_are_late() -> None:
    """Its windows end where all have samples; then it waits for those that are late."""
    metrics = of(half_end(120), at_addresses(*ALL))
    now = [T - 300]
    metrics.now = lambda: datetime.fromtimestamp(now[0], UTC)  # type: ignore[method-assign]
    live = LiveMetrics(metrics, timedelta(minutes=1))
    probes = ProbeSample(total=0, failures=0, latencies_seconds=(), healthy=True)
    live.seen(Observation(probes=probes, replicas=at_addresses(*ALL)))

    def answer(at: float) -> str:
        now[0], live._answer = at, None
        live._ask()
        return live._answer.unknown if live._answer else "no answer"

    assert "no time has passed" in answer(T - 300)
    assert answer(T - 180) == ""
    assert answer(T - 30) == ""  # up to the newest that the late ones have
    assert re.search(r"no newer sample of every server: 10\.0\.0\.3:8000 lags by", answer(T - 15))


def test_a_window_of_a_watch_asks_for_up_once() -> None:
    asked: list[str] = []

    def world(metric: str) -> World:
        asked.append(metric)
        return scraped(four())

    metrics = DeploymentMetrics(scripted(world), RULES, PRODUCTION)
    now = [T - 300]
    metrics.now = lambda: datetime.fromtimestamp(now[0], UTC)  # type: ignore[method-assign]
    live = LiveMetrics(metrics, timedelta(minutes=1))
    live._counts(None)
    now[0] = T
    asked.clear()
    assert live._counts(timedelta(minutes=1)).unknown == ""
    assert asked.count("up") == 1
