"""Production gates that cannot know: held, asked again, then kept or rolled back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.world import (
    DEVELOPMENT,
    MODEL,
    PRODUCTION,
    STAGING,
    ScriptedGates,
    World,
    builds,
    failing_when,
    healthy,
    kinds,
)

from vllm_rollout.gate_runs import latency_before
from vllm_rollout.judge import Outcome, Verdict
from vllm_rollout.judge.live_slo import error_rate_verdicts
from vllm_rollout.judge.percentile import percentile_verdict
from vllm_rollout.judge.rate import rate_verdict
from vllm_rollout.model.deployment import Deployment, RevisionStatus
from vllm_rollout.model.errors import ExitCode
from vllm_rollout.model.evidence import GateRun
from vllm_rollout.model.observation import ProbeSample
from vllm_rollout.model.request_counts import RequestCounts
from vllm_rollout.policy import Latency
from vllm_rollout.rollout.engine import gate_and_promote
from vllm_rollout.rollout.evidence_store import PassedRevisionsReader
from vllm_rollout.rollout.journal import Event, Phase
from vllm_rollout.rollout.model_status import model_status

PASSED = Verdict(outcome=Outcome.PASS, reason="")
(NO_DATA,) = error_rate_verdicts(
    [RequestCounts(source="servers", unknown="no scrape")], limit=0.001, confidence=0.95
)
FEW = rate_verdict(0, 40, limit=0.001, confidence=0.95)
BAD = rate_verdict(9, 6600, limit=0.001, confidence=0.95)


class AskedAgain(ScriptedGates):
    """Of production's two gates `health` passes; the other's verdicts come one after the other."""

    second = "live_metrics"
    verdicts: Sequence[Verdict] = ()
    first: Mapping[str, Any] = {}
    """Fields of the first run."""
    asked: list[tuple[str, ...]]

    def _run(self, deployment: Deployment, kind: str, gates: Sequence[str]) -> GateRun:
        if kind != "production":
            return super()._run(deployment, kind, gates)
        both = ("health", self.second)
        asked = both if "health" in gates else tuple(gates)
        self.asked.append(asked)
        verdict = self.verdicts[min(len(self.asked), len(self.verdicts)) - 1]
        run = super()._run(deployment, kind, asked)
        return replace(
            run,
            expected=both,
            gates=tuple(
                replace(g, verdicts=(verdict if g.gate == self.second else PASSED,))
                for g in run.gates
            ),
            **(self.first if len(self.asked) == 1 else {}),
        )


Asks = Callable[..., AskedAgain]


@pytest.fixture
def asks(world: World) -> Asks:
    """Let production's second gate answer so, the last verdict again and again."""

    def asks(*verdicts: Verdict, second: str = "live_metrics") -> AskedAgain:
        gates = world.gates = AskedAgain(world.platform, world.clock)
        gates.verdicts, gates.second, gates.asked = verdicts, second, []
        return gates

    return asks


def passed_there(world: World) -> bool:
    build = world.platform.history(PRODUCTION)[-1].build
    rules = world.tools().run.policy.evidence
    return PassedRevisionsReader(world.platform.store).build_passed(PRODUCTION, build, rules)


def test_a_gate_that_comes_to_know_is_asked_again_alone(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA, NO_DATA, PASSED)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert gates.asked == [("health", "live_metrics"), ("live_metrics",), ("live_metrics",)]
    # What found nothing took nothing of the risk.
    assert gates.confidences[-3:] == [pytest.approx(0.955)] * 3
    assert evidence.runs[-1].outcome is Outcome.PASS
    assert {g.gate for g in evidence.runs[-1].gates} == {"health", "live_metrics"}
    assert passed_there(world)


UNREAD = {"changed": "the API server gives no answer", "unread": True, "build": None}


def test_what_could_not_be_read_for_a_moment_rolls_nothing_back(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA, PASSED)
    gates.first = UNREAD
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.OK, evidence.conclusion
    assert evidence.runs[-1].build == world.platform.history(PRODUCTION)[-1].build
    assert passed_there(world)


def test_what_has_changed_under_the_gates_is_not_asked_again(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA, PASSED)
    gates.first = {"changed": "revision 2 became revision 3"}
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert len(gates.asked) == 1


def test_gates_that_are_asked_again_go_by_the_load_of_before(
    world: World, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stock buckets cannot decide is decided by it: `live_metrics` alone makes no load."""
    slow = percentile_verdict([2.7] * 10, percentile=95, limit_seconds=3, confidence=0.95)
    gates = asks(slow, PASSED, second="latency")
    folders: list[Path] = []
    run = gates.run

    def noted(deployment: Deployment, folder: Path, **options: Any) -> GateRun:
        folders.append(folder)
        return run(deployment, folder, **options)

    monkeypatch.setattr(gates, "run", noted)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    first, again = (folder / "evidence.json" for folder in folders[-2:])
    asked = Latency(percentile=95, limit="3s")
    found = latency_before(again, asked)
    assert found is not None
    assert (found.measured, found.outcome) == (2.7, Outcome.INCONCLUSIVE)
    assert latency_before(again, Latency(percentile=99, limit="3s")) is None
    assert latency_before(first, asked) is None


@pytest.mark.parametrize("unseen", [NO_DATA, FEW], ids=["no data", "too few requests"])
def test_what_is_only_unseen_is_kept_and_a_person_told(
    world: World, asks: Asks, unseen: Verdict
) -> None:
    gates = asks(unseen)
    told: list[tuple[str, str]] = []
    evidence = gate_and_promote(
        world.tools(notify=lambda kind, text, **_: told.append((kind, text)))
    )

    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "A person is needed" in evidence.conclusion
    assert "live_metrics (inconclusive)" in evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[1], 4, 4)
    assert told.count(("kept", evidence.conclusion)) == 1
    assert kinds(world)[-1] == "kept"
    assert 5 < len(gates.asked) <= 11
    later = 0.955 if unseen is NO_DATA else 0.9995
    asked = gates.confidences[-len(gates.asked) :]
    assert asked == [pytest.approx(0.955), *[pytest.approx(later)] * (len(asked) - 1)]
    assert not passed_there(world)

    # The next run asks again, and does not call it well before it is.
    asks(unseen)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.UNREACHABLE
    asks(PASSED)
    told.clear()
    evidence = gate_and_promote(
        world.tools(notify=lambda kind, text, **_: told.append((kind, text)))
    )
    assert evidence.exit_code == ExitCode.OK
    assert passed_there(world)
    # Whoever was called is told that it is over.
    assert told == [("settled", evidence.conclusion)]
    assert "has passed its gates now" in evidence.conclusion
    assert kinds(world)[-1] == "settled"


def test_a_kept_build_that_was_rolled_back_is_kept_no_longer(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    world.overrides |= {"inconclusive.deadline": "0s"}

    world.probes = failing_when(lambda: world.platform.serving(PRODUCTION)[1] == 4)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.ROLLED_BACK
    world.probes = healthy
    old = world.platform.deploy(STAGING, {"version": 1})
    world.pass_development(old)
    asks(NO_DATA)
    evidence = gate_and_promote(world.tools())
    assert "Nothing to do" in evidence.conclusion, evidence.conclusion


def test_status_says_that_a_build_is_kept_and_how_to_ask_again(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    gate_and_promote(world.tools())
    policy = world.tools().run.policy
    staging = model_status(world.platform, policy, MODEL, world.clock.now()).environments[1]
    (block,) = staging.blocks
    assert "runs this build already" in block
    assert "has not passed its gates there: live_metrics (inconclusive)" in block
    assert "gate-and-promote llama-2-7b --to production" in block


def test_a_rollout_to_another_environment_leaves_what_is_kept(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    gate_and_promote(world.tools())
    releases = world.tools(source=DEVELOPMENT, target=STAGING).releases
    releases.journal.read()
    with releases.leased():
        build = world.platform.history(STAGING)[-1].build
        entry = releases.begin(build, before=None, note="another run")
        releases.close(entry, Event.VERIFIED, "promoted")
    asks(PASSED)
    evidence = gate_and_promote(world.tools())
    assert "was kept by" in evidence.conclusion, evidence.conclusion
    assert kinds(world)[-1] == "settled"
    assert "Nothing to do" in gate_and_promote(world.tools()).conclusion


def test_what_passes_later_is_the_revision_that_serves(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    gate_and_promote(world.tools())
    history = world.platform.releases[PRODUCTION.release]
    serves = history[-1]
    other = {"number": serves.number + 1, "build": history[0].build, "replicas": 0}
    history.append(replace(serves, **other, status=RevisionStatus.FAILED))
    asks(PASSED)
    assert gate_and_promote(world.tools()).exit_code == ExitCode.OK
    passed = PassedRevisionsReader(world.platform.store)
    assert passed.evidence_of(PRODUCTION, serves) is not None
    assert passed.evidence_of(PRODUCTION, history[-1]) is None


def test_a_kept_build_is_rolled_back_when_it_fails_later(world: World, asks: Asks) -> None:
    asks(NO_DATA)
    gate_and_promote(world.tools())
    asks(Verdict(outcome=Outcome.FAIL, reason=""))
    told: list[str] = []
    tools = world.tools(notify=lambda kind, _, **__: told.append(kind))
    assert gate_and_promote(tools).exit_code == ExitCode.ROLLED_BACK
    assert world.platform.serving(PRODUCTION) == (builds(world)[0], 4, 4)
    assert told == ["settled", "rollback", "rolled-back"]


@pytest.mark.parametrize(
    ("verdict", "second", "policy", "kept"),
    [
        (BAD, "live_metrics", {}, False),
        (BAD, "live_metrics", {"inconclusive.seen": "keep"}, True),
        (BAD, "error_rate", {"inconclusive.gates.error_rate": "keep"}, True),
        (FEW, "live_metrics", {"inconclusive.gates.live_metrics": "roll_back"}, False),
        (NO_DATA, "own_gate", {"inconclusive.unseen": "roll_back"}, False),
        (NO_DATA, "own_gate", {}, True),
        (NO_DATA, "inference", {}, False),
        (NO_DATA, "smoke", {}, True),
    ],
)
def test_the_policy_says_of_each_gate_what_is_kept(
    world: World, asks: Asks, verdict: Verdict, second: str, policy: dict[str, str], kept: bool
) -> None:
    asks(verdict, second=second)
    world.overrides |= policy
    evidence = gate_and_promote(world.tools())
    code = ExitCode.UNREACHABLE if kept else ExitCode.ROLLED_BACK
    assert evidence.exit_code == code, evidence.conclusion
    assert world.platform.serving(PRODUCTION) == (builds(world)[kept], 4, 4)


def test_a_trigger_that_fires_while_gates_are_held_rolls_back(world: World, asks: Asks) -> None:
    gates = asks(NO_DATA)
    world.probes = failing_when(lambda: gates.asked)
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.ROLLED_BACK
    assert "complete outage" in evidence.conclusion


def test_a_run_that_goes_on_with_a_kept_one_calls_it_no_pass(world: World, asks: Asks) -> None:
    asks(NO_DATA)

    def interrupted(seconds: float) -> ProbeSample:
        entry = world.journal()
        if entry is not None and entry.phase is Phase.WATCH:
            world.probes = healthy
            raise KeyboardInterrupt
        return healthy(seconds)

    world.probes = interrupted
    assert gate_and_promote(world.tools()).exit_code == ExitCode.INTERRUPTED
    evidence = gate_and_promote(world.tools())
    assert evidence.exit_code == ExitCode.UNREACHABLE
    assert "A person is needed" in evidence.conclusion
