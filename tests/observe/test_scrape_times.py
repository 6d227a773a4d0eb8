"""Scrapes that are rare, late or not there yet, and clocks that differ: what is judged then."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from support.scraped_pods import (
    LABELS,
    Pod,
    World,
    four,
    live_gate,
    merged,
    outage,
    scripted,
    series_key,
)
from support.scripted_prometheus import NOW, T

from vllm_rollout.model.deployment import Deployment
from vllm_rollout.observe.deployment_metrics import DeploymentMetrics
from vllm_rollout.observe.prometheus_window import LiveMetrics
from vllm_rollout.policy import load_policy

PRODUCTION = Deployment("llama-2-7b", "production")
WINDOW = timedelta(minutes=15)
RULES = load_policy(None, overrides={"prometheus.url": "http://prometheus"})


def of(world: World) -> DeploymentMetrics:
    return DeploymentMetrics(scripted(lambda metric: world), RULES.prometheus, PRODUCTION)


def judged(world: World, end: datetime = NOW, window: timedelta = WINDOW) -> tuple[str, str, str]:
    return live_gate(of(world), window, end=end)


def one(pods: Sequence[Pod], every: float = 15) -> World:
    return merged(*(p.scraped(T, offset=i * every / 5, every=every) for i, p in enumerate(pods)))


def shaken(world: World) -> World:
    """Each scrape some milliseconds late, none like the one before."""
    return {
        key: {t + 0.004 * (int(t) // 15 * 7 % 5): v for t, v in samples.items()}
        for key, samples in world.items()
    }


def late(world: World, seconds: float) -> World:
    """Without the newest samples."""
    return {
        key: left
        for key, samples in world.items()
        if (left := {t: v for t, v in samples.items() if t <= T - seconds})
    }


@pytest.mark.parametrize("every", [5, 15, 30, 60, 120])
def test_gaps_are_measured_in_scrape_intervals(every: float) -> None:
    """With 60 s, Prometheus' own default, and jitter."""
    assert judged(shaken(one(four(), every)))[:2] == ("pass", "pass")
    assert judged(shaken(one(four(bad=outage), every)))[0] == "fail"
    (counted,) = of(shaken(one(four(), every))).error_rates(WINDOW, end=NOW).sources
    assert counted.total == pytest.approx(4 * 2 * 900, rel=0.15)
    # Where scrapes are missing, that is a gap however rare they are.
    missing = one([*four()[1:], Pod("10.0.0.1:8000", down=(700, 340))], every)
    assert "no scrape of 10.0.0.1:8000" in judged(missing)[2]


def test_a_soak_by_rare_scrapes_sees_all_servers() -> None:
    seen = of(shaken(one(four(), 60))).uptime(NOW - WINDOW, NOW)
    assert {up for _, up in seen.moments} == {4}
    assert seen.gaps == ()


@pytest.mark.parametrize("seconds", [40, 120, 240])
def test_a_lag_ends_the_window_at_the_newest_sample_and_is_named(seconds: float) -> None:
    errors, slow, reasons = judged(late(one(four()), seconds))
    assert (errors, slow) == ("pass", "pass")
    assert "Prometheus lags by" in reasons
    assert judged(late(one(four(bad=outage)), seconds))[0] == "fail"
    assert "Prometheus lags" not in judged(one(four()))[2]
    assert "no scrape of any target" in judged(late(one(four()), 400))[2]


@pytest.mark.parametrize("ahead", [-90, -20, 20, 90])
def test_a_clock_that_is_ahead_or_behind_makes_no_gap(ahead: float) -> None:
    assert judged(one(four()), NOW + timedelta(seconds=ahead))[:2] == ("pass", "pass")


@pytest.mark.parametrize(("every", "lag"), [(15, 0), (15, 120), (60, 0), (60, 60)])
def test_a_watch_sees_an_outage_by_late_and_rare_scrapes(every: float, lag: float) -> None:
    """By the server's clock, in windows that begin no earlier than the watch."""
    world = shaken(one(four(bad=outage), every))
    now = [T - 960]

    def up_to_now(metric: str) -> World:
        left = late(world, T - now[0] + lag)
        return left or world

    metrics = DeploymentMetrics(scripted(up_to_now), RULES.prometheus, PRODUCTION)
    metrics.now = lambda: datetime.fromtimestamp(now[0], UTC)  # type: ignore[method-assign]
    live = LiveMetrics(metrics, timedelta(minutes=1))
    shares = []
    while now[0] < T - 300:
        counts = live._counts(timedelta(minutes=1))
        shares.append((now[0] - T + 900, counts.rates.against(0.5)))
        now[0] += 15
    seen = [at for at, share in shares if share is not None and share > 0.9]
    assert seen
    assert seen[0] <= 60 + lag + 2 * every
    assert all(share is not None for at, share in shares if at > 60 + lag + 2 * every)


def loading(address: str, born: int, ready: int) -> World:
    """A new pod that is scraped from its start on; each scrape fails until it is ready."""
    pod = Pod(address, born=born, ready=ready, labels={"pod": address})
    key = series_key("up", **LABELS, instance=address, pod=address)
    failed: dict[float, float] = {T - ago: 0 for ago in range(born, ready, -15)}
    return merged({key: failed}, pod.scraped(T))


WORLDS: dict[str, tuple[Callable[[], World], str]] = {
    "a new pod loads for five minutes": (
        lambda: merged(one(four()), loading("10.0.0.9:8000", 700, 400)),
        "",
    ),
    "all are replaced by new ones": (
        lambda: merged(
            one(four(gone=380)), *(loading(f"10.0.1.{i}:8000", 710 + i, 400) for i in range(4))
        ),
        "",
    ),
    "a server restarts and loads": (
        lambda: one([*four()[1:], Pod("10.0.0.1:8000", restarted=600, down=(610, 300))]),
        "",
    ),
    "a server is away for long before it starts again": (
        lambda: one([*four()[1:], Pod("10.0.0.1:8000", restarted=320, down=(610, 300))]),
        "no scrape of 10.0.0.1:8000",
    ),
    "a server that goes on serving is not scraped": (
        lambda: one([*four()[1:], Pod("10.0.0.1:8000", down=(610, 300))]),
        "no scrape of 10.0.0.1:8000",
    ),
    "a new pod is never scraped": (
        lambda: merged(one(four()), loading("10.0.0.9:8000", 700, 0)),
        "no scrape of 10.0.0.9:8000",
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_time_in_which_a_server_loads_is_no_gap(name: str) -> None:
    world, gap = WORLDS[name]
    errors, slow, reasons = judged(world())
    if gap:
        assert gap in reasons
        assert (errors, slow) == ("inconclusive", "inconclusive")
    else:
        assert (errors, slow) == ("pass", "pass"), reasons


def test_a_window_that_is_shorter_than_a_scrape_interval_has_no_scrape_yet() -> None:
    """Its targets are known: the labels are not at fault."""
    errors, latency, why = judged(
        one(four(), every=120), NOW - timedelta(seconds=60), timedelta(seconds=10)
    )
    assert (errors, latency) == ("inconclusive", "inconclusive")
    assert why.count("no scrape since 09:58:50 UTC") == 2, why
