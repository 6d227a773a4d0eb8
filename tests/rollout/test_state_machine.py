"""Weeks of rollouts in seconds: whatever is deployed, breaks, dies, freezes or comes at once.

Hypothesis drives the real engine on the simulated world. What must always hold is checked at each
change of a release and after each run.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.crashing import Calls, Killed, When, Wrapped
from support.simulated import ALL_STABLE
from support.world import BY_TRAFFIC, MODEL, PRODUCTION, QUICK, STAGING, World

from vllm_rollout.judge import Outcome
from vllm_rollout.model.deployment import Deployment, RevisionStatus, newest_served
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import Evidence
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.platform.base import ConflictError
from vllm_rollout.rollout.audit_log import AuditLog
from vllm_rollout.rollout.engine import gate_and_promote, manual_rollback
from vllm_rollout.rollout.journal import Journal

CAPACITY = 4
MOMENTS = st.tuples(st.integers(0, 60), st.sampled_from(["before", "after"]))
FAULTS = ("none", "gates fail", "gates cannot know", "never ready", "breaks in production")


class Rollouts(RuleBasedStateMachine):
    """The releases of one model, and people and machines that work on them."""

    new_world: Callable[[], World]
    policy: Mapping[str, Any] = QUICK

    def __init__(self) -> None:
        super().__init__()
        self.world = self.new_world()
        self.world.overrides.update(self.policy, **{"windows.enforce": False})
        self.faults: dict[str, str] = {}
        self.gated = {self.build_in(PRODUCTION)}
        self.version = 2
        self.ended = True
        self.world.probes = self.probes
        self.world.gates.during = self.gates
        self.world.platform.in_change = self.check_change

    # What the world is like

    def build_in(self, deployment: Deployment) -> str:
        serving = newest_served(self.world.platform.history(deployment))
        return serving.build.digest if serving else ""

    def fault(self, deployment: Deployment) -> str:
        return self.faults.get(self.build_in(deployment), "none")

    def probes(self, _seconds: float) -> ProbeSample:
        bad = self.fault(PRODUCTION) == "breaks in production"
        latencies = () if bad else (0.1,) * 10
        failures = 10 if bad else 0
        return ProbeSample(total=10, failures=failures, latencies_seconds=latencies, healthy=True)

    def gates(self, deployment: Deployment) -> None:
        outcome = {"gates fail": Outcome.FAIL, "gates cannot know": Outcome.INCONCLUSIVE}
        outcomes = self.world.gates.outcomes
        outcomes["staging"] = outcome.get(self.fault(STAGING), Outcome.PASS)
        if deployment == STAGING and outcomes["staging"] is Outcome.PASS:
            self.gated.add(self.build_in(STAGING))

    # What must hold at every change

    def check_change(self, call: str) -> None:
        platform = self.world.platform
        guard = platform.guarded_by
        holder = platform.store.leases[MODEL].holder
        assert guard is not None
        assert holder == guard.holder, f"{call} by {guard.holder}, the lease is {holder}'s"  # type: ignore[attr-defined]
        for deployment in (PRODUCTION, PRODUCTION.canary):
            for revision in platform.history(deployment)[-1:]:
                what = f"{call}: a build that no gate has passed"
                assert revision.build.digest in self.gated, what
        share = platform.weights(PRODUCTION).canary_share
        assert platform.ready(PRODUCTION.canary) >= share * CAPACITY, call
        entry = Journal(platform.store, MODEL).read()
        assert entry is not None
        assert entry.unfinished, f"{call}: and the journal says that all is done"
        assert entry.holder == holder

    # What happens

    @initialize()
    def begin(self) -> None:
        self.faults[self.build_in(STAGING)] = "none"

    @rule(fault=st.sampled_from(FAULTS))
    def deploy_to_staging(self, fault: str) -> None:
        self.version += 1
        build = self.world.platform.deploy(STAGING, {"version": self.version})
        self.world.pass_development(build)
        self.faults[build.digest] = fault
        if fault == "never ready":
            self.world.platform.never_ready.add(build.digest)

    @rule(hours=st.integers(1, 300))
    def time_passes(self, hours: int) -> None:
        self.world.clock.sleep(timedelta(hours=hours))

    @rule(hours=st.sampled_from([-1, 1]))
    def the_clock_is_stepped(self, hours: int) -> None:
        self.world.clock.wall += timedelta(hours=hours)

    @rule()
    def roll_out(self) -> None:
        self.explained(gate_and_promote(self.world.tools()))

    @rule(moment=MOMENTS)
    def roll_out_and_be_killed(self, moment: tuple[int, When]) -> None:
        def kill() -> None:
            raise Killed

        calls = Calls(kill, at=moment[0], when=moment[1])
        with suppress(Killed):
            gate_and_promote(self.world.tools(Wrapped(self.world.platform, calls)))
        self.ended = not calls.dead

    @rule(moment=MOMENTS, frozen=st.booleans())
    def roll_out_while_another_comes(self, moment: tuple[int, When], *, frozen: bool) -> None:
        platform, said = self.world.platform, []

        def another() -> None:
            before, held = list(platform.calls), bool(platform.store.leases)
            with self.world.in_between(frozen=frozen):
                said.append(gate_and_promote(self.world.tools()))
            assert frozen or not held or platform.calls == before

        calls = Calls(another, at=moment[0], when=moment[1])
        first = gate_and_promote(self.world.tools(Wrapped(platform, calls)))
        self.explained(said[0] if said and frozen else first)

    @rule()
    def manual_rollback(self) -> None:
        before, left = list(self.world.platform.calls), self.world.journal()
        tools = self.world.tools(source=PRODUCTION)
        evidence = manual_rollback(tools, to=None, reason="customers complain")
        if evidence.exit_code == ExitCode.USAGE and left is not None and left.unfinished:
            # Killed before its first change, and nothing is older: the next rollout undoes it.
            assert self.world.platform.calls == before
            self.ended = True
        else:
            self.explained(evidence)

    @rule()
    def the_store_is_written_by_others(self) -> None:
        store = self.world.platform.store
        with suppress(ConflictError):
            store.write(f"rollout/{MODEL}", {}, expect="0")

    # What must hold afterwards

    def explained(self, evidence: Evidence) -> None:
        """The journal says why production is as it is after a run that was not killed."""
        self.ended = True
        entry = Journal(self.world.platform.store, MODEL).read()
        if entry is None:
            assert self.world.platform.calls == []
        elif entry.unfinished:
            assert evidence.exit_code in (ExitCode.NEEDS_PERSON, ExitCode.UNREACHABLE)
        elif entry.note == "promoted":
            assert self.build_in(PRODUCTION) == entry.build.digest
        else:
            assert entry.note.startswith("rolled back")
            assert self.build_in(PRODUCTION) != entry.build.digest

    @invariant()
    def production_serves_with_all_its_replicas(self) -> None:
        serving = newest_served(self.world.platform.history(PRODUCTION))
        assert serving is not None, "the only replicas there were are gone"
        assert serving.capacity == CAPACITY
        assert serving.build.digest in self.gated

    @invariant()
    def nothing_is_half_done_unless_a_run_was_killed(self) -> None:
        history = self.world.platform.history(PRODUCTION)
        if self.ended:
            assert RevisionStatus.PENDING not in [revision.status for revision in history]
            assert self.world.platform.store.leases == {}
            entry = Journal(self.world.platform.store, MODEL).read()
            if entry is None or not entry.unfinished:
                assert self.world.platform.weights(PRODUCTION) == ALL_STABLE
                assert self.world.platform.history(PRODUCTION.canary) == []

    @invariant()
    def the_decisions_are_whole(self) -> None:
        assert AuditLog(self.world.platform.store).verify(MODEL) == []


class RolloutsByTraffic(Rollouts):
    """The same, by traffic weight."""

    policy = BY_TRAFFIC


@pytest.mark.parametrize(("rollouts", "examples"), [(Rollouts, 60), (RolloutsByTraffic, 40)])
def test_rollouts_whatever_happens(
    new_world: Callable[[], World], rollouts: type[Rollouts], examples: int
) -> None:
    rollouts.new_world = staticmethod(new_world)
    run_state_machine_as_test(
        rollouts,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
