"""The rollback triggers of the workflow, each over a stream of sights."""

import math
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from support.hostile import ENDLESS, hostile
from support.simulated import FakeClock
from support.world import PRODUCTION, World

from vllm_rollout.judge import Outcome
from vllm_rollout.judge.sample_outputs import doubts_of
from vllm_rollout.model.deployment import Replica
from vllm_rollout.model.observation import Observation, ProbeSample
from vllm_rollout.model.request_counts import (
    ErrorRates,
    LatencyCounts,
    LiveCounts,
    RequestCounts,
    nothing_known,
)
from vllm_rollout.observe.bounded_question import BoundedQuestion
from vllm_rollout.observe.client import InferenceClient
from vllm_rollout.observe.probe import probe
from vllm_rollout.policy import load_policy
from vllm_rollout.rollout.watcher import WatchEnd, Watcher

GOOD = Replica(name="r", phase="Running", ready=True, restarts=0)
CRASHING = Replica(name="r", phase="Running", ready=False, restarts=5, reason="CrashLoopBackOff")


def sight(
    *,
    failures: int = 0,
    seconds: float = 0.1,
    healthy: bool = True,
    replicas: list[Replica] | None = [GOOD],  # noqa: B006 - read only
    total: int = 10,
    live: LiveCounts | None = None,
    path_errors: str = "",
    cached: int = 0,
) -> Observation:
    probes = ProbeSample(
        total=total,
        failures=failures,
        latencies_seconds=(seconds,) * (total - failures),
        healthy=healthy,
        path_errors=path_errors,
        cached=cached,
        health_cached=cached > 0,
    )
    return Observation(probes=probes, replicas=replicas, live=live)


def watch(
    look: Callable[[float], Observation],
    *,
    minutes: float = 30,
    after_promotion: bool = False,
    prometheus: str | bool = False,
    since: LiveCounts | None = None,
    told: list[str] | None = None,
) -> WatchEnd:
    """Watch under the default policy; `look` is given the seconds since the start."""
    clock = FakeClock()
    told = [] if told is None else told
    watcher = Watcher(
        policy=load_policy(None, overrides={"watch.duration": "1h", "prometheus.url": prometheus}),
        clock=clock,
        observe=lambda: look(clock.seconds),
        live=lambda: since,
        on_tick=lambda _elapsed, _sight: None,
        on_found=lambda _found, gap: told.append(f"{clock.seconds:g}: {gap}") if gap else None,
    )
    return watcher.watch(timedelta(minutes=minutes), after_promotion=after_promotion)


@pytest.mark.parametrize(
    ("bad", "name", "at_least", "at_most"),
    [
        (sight(failures=1), "error rate", 300, 420),
        (sight(seconds=7), "P95 latency", 600, 720),
        (sight(failures=10), "complete outage", 30, 100),
        (sight(replicas=[CRASHING]), "crash loop", 0, 10),
        (sight(healthy=False), "health check", 15, 25),
        (sight(replicas=[]), "crash loop", 0, 10),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_trigger_fires_when_its_condition_lasts(
    bad: Observation, name: str, at_least: float, at_most: float
) -> None:
    end = watch(lambda _at: bad)

    assert end.fired.startswith(name)
    assert at_least <= end.observed_seconds <= at_most


@pytest.mark.parametrize(
    "look",
    [
        lambda _at: sight(),
        lambda at: sight(failures=1 if at % 240 < 60 else 0),  # bad minutes, never five in a row
        lambda at: sight(seconds=7 if at % 600 < 400 else 0.1),
        lambda at: sight(healthy=at % 20 >= 15),  # three failures in a row, not more
        lambda _at: sight(replicas=[GOOD, CRASHING]),  # not all
    ],
    ids=["well", "short error bursts", "short slow spells", "three health failures", "one crashes"],
)
def test_what_does_not_last_or_is_not_everything_fires_nothing(
    look: Callable[[float], Observation],
) -> None:
    assert watch(look).fired == ""


@pytest.mark.parametrize(
    ("bad", "began", "name"),
    [
        (sight(seconds=8), 310, "P95 latency"),
        (sight(failures=5), 590, "error rate"),
        (sight(failures=10), 590, "complete outage"),
    ],
)
def test_a_condition_that_begins_late_is_watched_until_it_fires(
    bad: Observation, began: float, name: str
) -> None:
    end = watch(lambda at: bad if at >= began else sight(), minutes=10)

    assert end.fired.startswith(name)


def test_a_condition_that_is_over_ends_the_watch_and_a_single_look_is_one() -> None:
    over = watch(lambda at: sight(failures=10 if 590 <= at < 610 else 0), minutes=10)
    assert (over.fired, over.observed_seconds < 1000) == ("", True)

    once = watch(lambda _at: sight(failures=5), minutes=0)
    assert (once.fired, once.observed_seconds) == ("", 0)


def test_a_health_check_that_trickles_without_end_holds_no_trigger_up() -> None:
    def trickles_and_fails(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET /health"):
            ENDLESS["trickled headers"](connection, request)
        connection.sendall(b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n")

    with hostile(trickles_and_fails) as url, InferenceClient(url, model="m") as client:
        probes = probe(client, count=2, timeout_seconds=0.4)
    end = watch(lambda _at: Observation(probes=probes, replicas=[GOOD]))
    assert end.fired


def test_a_platform_that_hangs_is_a_gap_in_the_observation_and_not_its_end() -> None:
    asked, answer = [], threading.Event()

    def hangs() -> list[Replica]:
        asked.append(1)
        answer.wait()
        return [GOOD]

    replicas = BoundedQuestion(hangs)
    assert [replicas.get(0.02), replicas.get(0.02)] == [None, None]
    assert len(asked) == 1
    answer.set()
    assert replicas.get(20) == [GOOD]

    def broken() -> list[Replica]:
        raise KeyError("an answer that is none")

    assert BoundedQuestion(broken).get(20) is None


def test_an_error_spike_counts_only_soon_after_promotion() -> None:
    late = watch(lambda at: sight(failures=1 if at > 700 and at < 800 else 0), after_promotion=True)
    soon = watch(lambda at: sight(failures=1 if 400 < at < 500 else 0), after_promotion=True)

    assert late.fired == ""
    assert soon.fired.startswith("error spike")


def test_a_violated_slo_after_promotion_fires_and_an_unproven_one_does_not() -> None:
    slow = watch(lambda _at: sight(seconds=4), after_promotion=True)
    well = watch(lambda _at: sight(), after_promotion=True)

    assert "P95" in slow.fired
    assert 300 <= slow.observed_seconds <= 310
    assert well.fired == ""
    assert well.verdicts["P95 latency"].outcome is Outcome.PASS
    assert well.verdicts["error rate"].outcome is Outcome.INCONCLUSIVE  # 600 probes cannot tell


@pytest.mark.parametrize("healthy", [True, False])
def test_what_a_cache_answers_is_neither_health_nor_an_outage(healthy: bool) -> None:
    end = watch(lambda _at: sight(total=0, cached=10, healthy=healthy), after_promotion=True)
    assert end.fired == ""
    assert set(end.unobservable) >= {"error rate", "complete outage", "P95 latency", "health check"}


def test_nonsense_and_cached_answers_are_told_once_and_fire_nothing(world: World) -> None:
    seen = sight(cached=2)
    probes = replace(seen.probes, cached_by="age: 3", answers=(("!!!!!", 5),))
    tools = world.tools()

    end = tools.observer.watch(
        PRODUCTION, timedelta(seconds=20), observe=lambda: replace(seen, probes=probes)
    )

    assert end.fired == ""
    assert [step.detail for step in tools.log.steps if "doubtful answers" in step.title] == [
        "2 of 12 answers from a cache (age: 3)",
        "1 of 1 answer degenerate: the answer repeats '!' and says nothing else: '!!!!!'",
    ]


def test_what_the_platform_does_not_say_is_named_as_not_observed() -> None:
    end = watch(lambda _at: sight(replicas=None))

    assert end.fired == ""
    assert end.unobservable == ("crash loop",)


CUT = sight(total=0, healthy=False, replicas=None, path_errors="the API server is away")


def test_what_the_way_there_suffered_is_a_gap_and_no_outage() -> None:
    away_for_a_while = watch(
        lambda at: CUT if 400 < at < 520 else sight(), minutes=20, after_promotion=True
    )
    away_at_the_end = watch(lambda at: CUT if at > 300 else sight())

    assert (away_for_a_while.fired, away_for_a_while.unobservable) == ("", ())
    assert away_for_a_while.verdicts["P95 latency"].outcome is Outcome.PASS
    assert away_at_the_end.fired == ""
    assert len(away_at_the_end.unobservable) == 5


def test_an_slo_whose_time_was_not_seen_is_named_though_all_is_seen_later() -> None:
    blind = sight(total=0, path_errors="the API server is away")
    end = watch(lambda at: blind if at <= 310 else sight(), after_promotion=True)
    seen = watch(lambda at: blind if at <= 290 else sight(), after_promotion=True)

    assert end.fired == ""
    assert end.unobservable == ("P95 latency after promotion", "error rate after promotion")
    assert seen.unobservable == ()


def test_an_outage_is_found_between_the_gaps() -> None:
    end = watch(lambda at: CUT if at % 60 < 30 else sight(failures=10))

    assert end.fired.startswith("complete outage")


# ------------------------------------------------- Prometheus beside the probes


def counted(
    *, failures: int = 0, total: int = 1000, slow: int = 0, source: str = "model servers"
) -> LiveCounts:
    """What Prometheus says; of `slow` requests it knows that they took between 7.5 s and 10 s."""
    requests = RequestCounts(
        source=source, total=total, failures=failures, failures_at_most=failures
    )
    buckets = {2.5: total - slow, 5.0: total - slow, 7.5: total - slow, 10.0: total}
    return LiveCounts(
        rates=ErrorRates(sources=(requests,)),
        latency=LatencyCounts(cumulative={**buckets, math.inf: total}),
    )


PROMETHEUS = "http://prometheus"


@pytest.mark.parametrize(
    ("live", "name", "at_least", "at_most"),
    [
        (counted(failures=60), "error rate by Prometheus: 6%", 300, 420),
        (counted(slow=60), "P95 latency by Prometheus: 6%", 600, 720),
        (counted(failures=20, total=20), "complete outage by Prometheus", 30, 100),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_users_meet_fires_although_every_probe_is_answered(
    live: LiveCounts, name: str, at_least: float, at_most: float
) -> None:
    end = watch(lambda _at: sight(live=live), prometheus=PROMETHEUS)

    assert end.fired.startswith(name)
    assert at_least <= end.observed_seconds <= at_most


def test_the_probes_fire_as_ever_while_prometheus_says_that_all_is_well() -> None:
    end = watch(lambda _at: sight(failures=10, live=counted()), prometheus=PROMETHEUS)

    assert end.fired.startswith("complete outage: ")


@pytest.mark.parametrize(
    ("live", "why"),
    [
        (nothing_known("no answer"), "no answer"),
        (None, "it has not answered yet"),
        (counted(failures=9, total=9), "too few requests"),  # an observation has 10 probes
    ],
    ids=["down", "hangs", "few"],
)
def test_what_prometheus_does_not_know_is_named_and_neither_health_nor_a_rollback(
    live: LiveCounts | None, why: str
) -> None:
    told: list[str] = []
    end = watch(lambda _at: sight(live=live), prometheus=PROMETHEUS, told=told)

    assert end.fired == ""
    assert end.unobservable == ()
    assert "error rate by Prometheus" in end.unseen
    assert why in end.unseen
    gap = told[0]
    assert gap.startswith("125: error rate by Prometheus, complete outage by Prometheus")


def test_a_gap_ends_when_prometheus_answers_again_and_what_it_shows_then_counts() -> None:
    told: list[str] = []

    def look(at: float) -> Observation:
        return sight(live=nothing_known("down") if 300 < at < 700 else counted())

    end = watch(look, prometheus=PROMETHEUS, told=told)
    assert (end.fired, end.unseen) == ("", "")
    assert told[0].startswith("425: ")
    assert told[-1].startswith("695: ")

    def breaks(at: float) -> Observation:
        return sight(live=nothing_known("down") if at < 700 else counted(failures=100))

    assert watch(breaks, prometheus=PROMETHEUS).observed_seconds > 1000


def test_an_error_spike_that_only_users_meet_rolls_back_soon_after_promotion() -> None:
    def look(at: float) -> Observation:
        return sight(live=counted(failures=80 if 400 < at < 500 else 0))

    end = watch(look, prometheus=PROMETHEUS, after_promotion=True, since=counted())

    assert end.fired.startswith("error spike after promotion by Prometheus")


def test_the_slo_after_promotion_is_judged_by_prometheus_too() -> None:
    def end(since: LiveCounts) -> WatchEnd:
        look = sight(live=counted())
        return watch(lambda _: look, prometheus=PROMETHEUS, after_promotion=True, since=since)

    assert "failed" in end(counted(failures=20)).fired
    assert "P95" in end(counted(slow=100)).fired
    unknown, well = end(nothing_known("down")), end(counted(total=4000))
    assert unknown.fired == well.fired == ""
    live = "P95 latency by Prometheus", "error rate by Prometheus (Prometheus)"
    assert {unknown.verdicts[name].outcome for name in live} == {Outcome.INCONCLUSIVE}
    assert well.verdicts["error rate by Prometheus (model servers)"].outcome is Outcome.PASS
    assert well.verdicts["P95 latency by Prometheus"].outcome is Outcome.PASS


def test_without_a_prometheus_in_the_policy_nothing_is_said_of_it() -> None:
    told: list[str] = []
    end = watch(lambda _at: sight(), told=told)

    assert (end.unseen, told) == ("", [])


@pytest.mark.parametrize("status", [401, 403, 307])
def test_a_refused_key_or_a_redirect_is_a_gap_with_its_reason(status: int) -> None:
    def refuses(connection: socket.socket, _request: bytes) -> None:
        head = f"HTTP/1.1 {status} No\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())

    with hostile(refuses) as url, InferenceClient(url, model="m", api_key="k") as client:
        probes = probe(client, count=2, timeout_seconds=5)
    end = watch(lambda _at: Observation(probes=probes, replicas=[GOOD]), after_promotion=True)

    assert end.fired == ""
    assert set(end.unobservable) >= {"error rate", "complete outage", "P95 latency", "health check"}
    assert url in doubts_of(probes)["refused"]
    assert ("key" in end.blind) is (status != 307)


def test_probes_beside_refused_ones_show_failures_and_no_health() -> None:
    def half(observation: Observation) -> Observation:
        return replace(observation, probes=replace(observation.probes, refused=2))

    assert watch(lambda _at: half(sight(failures=10))).fired.startswith("complete outage")
    assert "error rate" in watch(lambda _at: half(sight())).unobservable
