"""The rollback triggers of the workflow, each over a stream of sights."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from support.world import FakeClock

from vllm_rollout.deployment import Replica
from vllm_rollout.judge import Outcome
from vllm_rollout.observe.probe import ProbeSample
from vllm_rollout.policy import load_policy
from vllm_rollout.release.watch import Sight, WatchEnd, Watcher

GOOD = Replica(name="r", phase="Running", ready=True, restarts=0)
CRASHING = Replica(name="r", phase="Running", ready=False, restarts=5, reason="CrashLoopBackOff")


def sight(
    *,
    failures: int = 0,
    seconds: float = 0.1,
    healthy: bool = True,
    replicas: list[Replica] | None = [GOOD],  # noqa: B006 - read only
    total: int = 10,
) -> Sight:
    probes = ProbeSample(
        total=total,
        failures=failures,
        latencies_seconds=(seconds,) * (total - failures),
        healthy=healthy,
    )
    return Sight(probes=probes, replicas=replicas)


def watch(
    look: Callable[[float], Sight], *, minutes: float = 30, after_promotion: bool = False
) -> WatchEnd:
    """Watch under the default policy; `look` is given the seconds since the start."""
    clock = FakeClock()
    watcher = Watcher(
        policy=load_policy(None, overrides={"watch.duration": "1h"}),
        clock=clock,
        look=lambda: look(clock.seconds),
        on_tick=lambda _elapsed, _sight: None,
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
    bad: Sight, name: str, at_least: float, at_most: float
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
    look: Callable[[float], Sight],
) -> None:
    assert watch(look).fired == ""


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


def test_what_the_platform_does_not_say_is_named_as_not_observed() -> None:
    end = watch(lambda _at: sight(replicas=None))

    assert end.fired == ""
    assert end.unobservable == ("crash loop",)
