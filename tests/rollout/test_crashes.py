"""Killed, or frozen, before and after every call: what the next run makes of it.

All cells on the simulated world; `tests/e2e` kills real processes. A kill is an exception that no
code expects, after which the run reaches nothing any more: its lease stays where it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.crashing import Calls, Killed, When, Wrapped
from support.recorder import Statuspage, shown_on
from support.simulated import ALL_STABLE
from support.world import (
    BY_TRAFFIC,
    MODEL,
    PRODUCTION,
    QUICK,
    STAGING,
    World,
    failing_when,
    healthy,
)

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import RevisionStatus
from vllm_rollout.model.errors import ExitCode, UnreachableError
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback


def promoted(world: World) -> None:
    """Every gate passes and every probe is well."""


def rolled_back(world: World) -> None:
    """Production answers with errors as soon as the new build is complete."""

    def complete() -> bool:
        serving = world.platform.serving(PRODUCTION)
        return serving is not None and serving[0] == second(world) and serving[1] == serving[2]

    world.probes = failing_when(complete)


def never_ready(world: World) -> None:
    """The new build does not come up in production."""
    world.platform.never_ready.add(second(world))


def removed(world: World) -> None:
    """Nothing was in production before, and the production gates fail: it is removed again."""
    del world.platform.releases[PRODUCTION.release]
    world.gates.outcomes["production"] = Outcome.FAIL


def by_hand(world: World) -> None:
    """A rollback by hand, of a rollout that went well."""
    gate_and_promote(world.tools())


def by_traffic(world: World) -> None:
    """By traffic weight, and every gate passes."""
    world.overrides.update(BY_TRAFFIC)
    world.platform.in_change = carried(world)


def traffic_back(world: World) -> None:
    """By traffic weight, and the canary answers with errors when it has all of it."""
    by_traffic(world)

    def probes(_seconds: float) -> ProbeSample:
        bad = world.platform.weights(PRODUCTION).canary_share == 1
        latencies, failures = ((), 10) if bad else ((0.1,) * 10, 0)
        return ProbeSample(
            total=10, failures=failures, latencies_seconds=latencies, healthy=not bad
        )

    world.canary_probes = probes
    world.probes = healthy


def stays_behind(world: World) -> None:
    """By traffic weight, and the release does not come up on the build that its canary has."""
    by_traffic(world)
    world.platform.failing.add("apply production 4/4")


SCENARIOS: dict[str, tuple[Callable[[World], None], str]] = {
    "promoted": (promoted, "second"),
    "rolled back": (rolled_back, "first"),
    "never ready": (never_ready, "first"),
    "removed": (removed, "nothing"),
    "by hand": (by_hand, "first"),
    "by traffic": (by_traffic, "second"),
    "traffic back": (traffic_back, "first"),
    "release stays behind": (stays_behind, "first"),
}


def first(world: World) -> str:
    return world.platform.build(PRODUCTION, {"version": 1}).digest


def second(world: World) -> str:
    return world.platform.build(STAGING, {"version": 2}).digest


def run(
    world: World, scenario: str, platform: Any = None, page: Statuspage | None = None
) -> Evidence:
    source = PRODUCTION if scenario == "by hand" else STAGING
    tools = world.tools(platform, source=source)
    if page is not None:
        shown_on(page, tools, world)
    if scenario == "by hand":
        return manual_rollback(tools, to=1, reason="customers complain")
    return gate_and_promote(tools)


def serving(world: World) -> str:
    found = world.platform.serving(PRODUCTION)
    if found is None:
        return "nothing"
    assert found[1] == found[2], "a ramp is half way"
    return {first(world): "first", second(world): "second"}[found[0]]


def at_rest(world: World) -> None:
    """Nothing is half done, and everything that was decided is in the chain."""
    entry = world.journal()
    assert entry is None or not entry.unfinished
    history = world.platform.history(PRODUCTION)
    assert RevisionStatus.PENDING not in [revision.status for revision in history]
    assert AuditLog(world.platform.store).verify(MODEL) == []
    assert world.platform.store.leases == {}
    assert world.platform.weights(PRODUCTION) == ALL_STABLE
    assert world.platform.history(PRODUCTION.canary) == []


def carried(world: World) -> Callable[[str], None]:
    """Asserts, at every change, that each side has the ready replicas for its traffic."""

    def carried(call: str) -> None:
        share = world.platform.weights(PRODUCTION).canary_share
        assert world.platform.ready(PRODUCTION.canary) >= share * 4, call
        assert world.platform.ready(PRODUCTION) >= (1 - share) * 4, call

    return carried


def cells(world: World, scenario: str) -> list[str]:
    """The calls of an uninterrupted run."""
    calls = Calls(lambda: None)
    run(world, scenario, Wrapped(world.platform, calls))
    return calls.names


@pytest.fixture
def fresh(new_world: Callable[[], World]) -> Callable[[str], World]:
    def fresh(scenario: str) -> World:
        world = new_world()
        world.overrides.update(QUICK)
        SCENARIOS[scenario][0](world)
        return world

    return fresh


def stopped(
    world: World,
    scenario: str,
    stop: Callable[[], None],
    at: int,
    when: When,
    page: Statuspage | None = None,
) -> Evidence | None:
    """What the run says that is stopped at that call; None if it says nothing any more."""
    calls = Calls(stop, at=at, when=when)
    try:
        return run(world, scenario, Wrapped(world.platform, calls), page)
    except Killed:
        return None


def kill() -> None:
    raise Killed


@dataclass
class Dying:
    """Dies in the middle of the change that comes after so many others."""

    calls: Calls
    after: int

    def __call__(self, _call: str) -> None:
        if self.after == 0:
            self.calls.dead = True
        self.after -= 1
        if self.calls.dead and self.after == -1:
            raise Killed


@dataclass
class Cutting:
    """Lets one call, or all from then on, find nobody there."""

    for_good: bool
    calls: Calls | None = None

    def __call__(self) -> None:
        if self.calls:
            self.calls.cut = self.for_good
        raise UnreachableError("no answer", address="the cluster")


def each_cell(fresh: Callable[[str], World], scenario: str) -> Iterator[tuple[World, int, When]]:
    names = cells(fresh(scenario), scenario)
    assert len(names) > 15
    for at in range(len(names)):
        for when in ("before", "after"):
            yield fresh(scenario), at, when


@pytest.fixture(autouse=True)
def page_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_KEY", "the key of the page")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_a_kill_at_any_call_the_next_run_ends_as_an_uninterrupted_one(
    fresh: Callable[[str], World], scenario: str
) -> None:
    uninterrupted = fresh(scenario)
    code = run(uninterrupted, scenario).exit_code
    assert serving(uninterrupted) == SCENARIOS[scenario][1]
    at_rest(uninterrupted)
    for world, at, when in each_cell(fresh, scenario):
        page = Statuspage()
        assert stopped(world, scenario, kill, at, when, page) is None
        evidence = run(world, scenario, page=page)
        assert serving(world) == SCENARIOS[scenario][1], (at, when, evidence.conclusion)
        held = "was rolled back from production" in evidence.conclusion
        assert held or evidence.exit_code in (code, ExitCode.OK), (at, when, evidence.conclusion)
        at_rest(world)
        assert {each["status"] for each in page.incidents} <= {"completed"}, (at, when)
        of = [each["metadata"]["vllm_rollout"]["run_id"] for each in page.incidents]
        assert len(of) == len(set(of)), (at, when)


@pytest.mark.parametrize("scenario", ["promoted", "rolled back", "by traffic", "traffic back"])
def test_a_kill_in_the_middle_of_any_change_is_undone_and_done_anew(
    fresh: Callable[[str], World], scenario: str
) -> None:
    changed: list[str] = []
    world = fresh(scenario)
    world.platform.in_change = changed.append
    run(world, scenario)
    assert changed[0].startswith("apply")
    for number in range(len(changed)):
        world, calls = fresh(scenario), Calls(lambda: None)
        world.platform.in_change = Dying(calls, after=number)
        with pytest.raises(Killed):
            run(world, scenario, Wrapped(world.platform, calls))
        run(world, scenario)
        assert serving(world) == SCENARIOS[scenario][1]
        at_rest(world)


@pytest.mark.parametrize("scenario", ["promoted", "rolled back", "by traffic", "traffic back"])
def test_who_was_frozen_at_any_call_while_another_run_took_over_changes_nothing(
    fresh: Callable[[str], World], scenario: str
) -> None:
    for world, at, when in each_cell(fresh, scenario):
        after: list[object] = []

        def freeze(world: World = world, after: list[object] = after) -> None:
            with world.in_between(frozen=True):
                run(world, scenario)  # waits for the lease, takes it, and is done
            after.append((list(world.platform.calls), world.platform.history(PRODUCTION)))

        evidence = stopped(world, scenario, freeze, at, when)
        assert evidence is not None
        unchanged = (world.platform.calls, world.platform.history(PRODUCTION))
        assert after == [unchanged], (at, when, evidence.conclusion)
        assert serving(world) == SCENARIOS[scenario][1]
        at_rest(world)


def test_of_two_runs_at_once_one_goes_on_and_the_other_says_who_it_is(
    fresh: Callable[[str], World],
) -> None:
    for world, at, when in each_cell(fresh, "promoted"):
        said: list[Evidence] = []

        def another_comes(world: World = world, said: list[Evidence] = said) -> None:
            before = list(world.platform.calls)
            with world.in_between(frozen=False):
                said.append(run(world, "promoted"))
            assert world.platform.calls == before

        evidence = stopped(world, "promoted", another_comes, at, when)
        assert evidence is not None
        assert evidence.exit_code == ExitCode.OK
        assert said[0].exit_code == ExitCode.INCONCLUSIVE
        assert "is being changed by" in said[0].conclusion
        at_rest(world)


@pytest.mark.parametrize("scenario", ["promoted", "rolled back", "by traffic", "traffic back"])
@pytest.mark.parametrize("for_good", [False, True])
def test_a_network_that_is_cut_at_any_call_promotes_nothing_wrong(
    fresh: Callable[[str], World], scenario: str, *, for_good: bool
) -> None:
    for world, at, when in each_cell(fresh, scenario):
        cut = Cutting(for_good=for_good)
        calls = cut.calls = Calls(cut, at=at, when=when)
        evidence = run(world, scenario, Wrapped(world.platform, calls))
        if evidence.exit_code == ExitCode.OK:
            assert serving(world) == "second"
        if evidence.exit_code == ExitCode.ROLLED_BACK:
            assert serving(world) == "first"

        if "was rolled back from production" in run(world, scenario).conclusion:
            gate_and_promote(world.tools(again="Ada"))
        assert serving(world) == SCENARIOS[scenario][1], (at, when, evidence.conclusion)
        at_rest(world)


def test_a_network_that_is_gone_when_the_watch_ends_well_takes_nothing_back(
    fresh: Callable[[str], World],
) -> None:
    names = cells(fresh("promoted"), "promoted")
    last = max(at for at, name in enumerate(names) if name == f"write rollout/{MODEL}")
    world, cut = fresh("promoted"), Cutting(for_good=True)
    calls = cut.calls = Calls(cut, at=last, when="before")

    evidence = run(world, "promoted", Wrapped(world.platform, calls))

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert serving(world) == "second"
    assert run(world, "promoted").exit_code == ExitCode.OK
    assert serving(world) == "second"
    at_rest(world)
