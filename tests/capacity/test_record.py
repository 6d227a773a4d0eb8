"""What was found is kept by build, and used only for the question it answers."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from support.simulated import FakeClock, MemoryStore, SimulatedPlatform

from vllm_rollout.capacity.headroom import KnownCapacity
from vllm_rollout.capacity.model import Capacity, StopReason
from vllm_rollout.capacity.question import expected_rate, goal_of, slos_of, steady
from vllm_rollout.capacity.record import capacity_on_record, keep_capacity, known_capacity
from vllm_rollout.model.deployment import Build, Deployment
from vllm_rollout.model.errors import UnreachableError, UsageError
from vllm_rollout.model.load_plan import LoadPlan, RateSegment, TraceEntry
from vllm_rollout.policy import Policy, load_policy

STAGING = Deployment("llama-2-7b", "staging")
BUILD = Build(values_digest="sha256:1")
FOUND = Capacity(
    ending=StopReason.AT_LEAST,
    confidence=0.95,
    lower=38.0,
    upper=math.inf,
    estimate=None,
    proved=40.0,
)


def policy(**overrides: str) -> Policy:
    changes = {f"environments.staging.{key}": value for key, value in overrides.items()}
    return load_policy(None, overrides=changes)


def kept(build: Build, rules: Policy, *, replicas: int = 1) -> KnownCapacity | None:
    """What is read of `build` by other rules, after it was kept twice by the defaults."""
    store = MemoryStore(FakeClock())
    for lower in (1.0, FOUND.lower):
        keep_capacity(
            store,
            STAGING,
            BUILD,
            Capacity(
                ending=FOUND.ending,
                confidence=0.95,
                lower=lower,
                upper=math.inf,
                estimate=None,
                proved=None,
            ),
            policy=policy(),
            replicas=1,
            found=datetime(2026, 11, 25, tzinfo=UTC),
        )
    return known_capacity(store, STAGING, build, policy=rules, replicas=replicas)


def test_the_latest_is_found_again_by_its_build_alone() -> None:
    known = kept(BUILD, policy())
    assert known is not None
    assert (known.lower, known.upper, known.same_question) == (38.0, math.inf, True)
    assert kept(Build(values_digest="sha256:2"), policy()) is None


def test_the_gate_asks_for_what_runs_now_and_an_outage_leaves_it_without() -> None:
    clock = FakeClock()
    platform = SimulatedPlatform(MemoryStore(clock), clock)
    assert capacity_on_record(None, STAGING, policy()) is None
    assert capacity_on_record(platform, STAGING, policy()) is None
    build = platform.deploy(STAGING, {"dials": {}}, replicas=2)
    keep_capacity(
        platform.store,
        STAGING,
        build,
        FOUND,
        policy=policy(),
        replicas=2,
        found=datetime(2026, 11, 25, tzinfo=UTC),
    )
    known = capacity_on_record(platform, STAGING, policy())
    assert known is not None
    assert (known.lower, known.same_question) == (38.0, True)
    platform.deploy(STAGING, {"dials": {"seed": 2}})
    assert capacity_on_record(platform, STAGING, policy()) is None

    def out_of_reach(_: str) -> None:
        raise UnreachableError("no answer", address="store")

    platform.store.read = out_of_reach  # type: ignore[method-assign,assignment]
    assert capacity_on_record(platform, STAGING, policy()) is None


@pytest.mark.parametrize(
    "changes",
    [{"gates.latency.limit": "2s"}, {"load.max_tokens": "32"}, {"gates.error_rate": "off"}],
)
def test_other_slos_or_requests_are_another_question(changes: dict[str, str]) -> None:
    known = kept(BUILD, policy(**changes))
    assert known is not None
    assert not known.same_question


def test_other_replicas_are_another_question_and_another_rate_is_not() -> None:
    more = kept(BUILD, policy(), replicas=2)
    assert more is not None
    assert not more.same_question
    rate = kept(BUILD, policy(**{"load.rate": "20/s"}))
    assert rate is not None
    assert rate.same_question


def test_a_record_that_cannot_be_read_is_none() -> None:
    store = MemoryStore(FakeClock())
    key = f"capacity/{STAGING.release}/{BUILD.digest.removeprefix('sha256:')}"
    for value in ({}, {"lower": "x"}, [], {"lower": 1, "upper": 2, "confidence": 1, "found": 3}):
        entry = store.read(key)
        store.write(key, value, expect=entry.version if entry else None)
        assert known_capacity(store, STAGING, BUILD, policy=policy(), replicas=1) is None


def test_the_question_is_the_policys_and_options_go_before_it() -> None:
    rules = policy()
    assert slos_of(rules, "staging").asked == ("P95 below 3 s", "error rate below 0.1%")
    assert expected_rate(rules, "staging") == 10
    goal = goal_of(rules, "staging", start_per_second=40, precision=0.2)
    assert (goal.start_per_second, goal.precision, goal.most_probes) == (40, 0.2, 16)
    assert goal.limit_seconds == 3


def test_what_no_search_can_be_made_of_is_refused() -> None:
    with pytest.raises(UsageError, match="no gate of development"):
        slos_of(policy(), "development")
    with pytest.raises(UsageError, match="max_per_second"):
        goal_of(policy(), "staging", start_per_second=40, max_per_second=20)
    plan: dict[str, Any] = {
        "base_url": "http://x",
        "model": "m",
        "rate_per_second": 1,
        "duration_seconds": 9,
    }
    with pytest.raises(UsageError, match="replayed"):
        steady(LoadPlan(**plan, trace=(TraceEntry(at=0, prompt_tokens=1, output_tokens=1),)))
    assert not steady(LoadPlan(**plan, shape=(RateSegment(seconds=1, start=1, end=2),))).shape
